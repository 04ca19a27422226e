"""The vendor's tools as stages: ONNX -> MLIR template -> bmodel pieces -> one bmodel.

All layers of a model have the same graph, so each net shape is transformed once, over random weights, and every layer's
own weight file is put under the resulting text. That is safe because the text holds no weight: it names the
arrays of the weight file, and random numbers, unlike real ones, never happen to be ones that the compiler folds away.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.compile.profile import PROFILE_NAME, write_profile
from tpudeploy.compile.random_weights import RandomWeights
from tpudeploy.compile.store import StageStore, stage_key
from tpudeploy.compile.toolchain import Toolchain, run_tool
from tpudeploy.contracts.base import digest_json
from tpudeploy.contracts.net import NetKind, NetSpec
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.errors import CompileError
from tpudeploy.graph.onnx_builder import OnnxBuilder, save_onnx

TEMPLATE_NAME = "template"
CHIP = "bm1684x"
_CODE = ("compile", "graph")


@dataclass(frozen=True)
class ChipCompiler:
    """Compiles nets for one chip type with one toolchain.

    :param logs: folder for the logs of vendor calls.
    """

    toolchain: Toolchain
    store: StageStore
    scheme: QuantScheme
    logs: Path

    def text_key(self, net: NetSpec, graph: OnnxBuilder) -> str:
        """Key of the MLIR text of a net's shape."""
        nodes = graph.nodes_digest()
        shape = {"inputs": [s.model_dump(mode="json") for s in net.inputs], "nodes": nodes}
        return stage_key("transform", {"net": shape, "tools": self.toolchain.version}, code=_CODE)

    def text(self, net: NetSpec, graph: OnnxBuilder, random: RandomWeights) -> tuple[Path, bool]:
        """The MLIR text of a net's shape, and whether it was there already."""
        key = self.text_key(net, graph)

        def produce(folder: Path) -> None:
            path, entries = random.file(graph)
            (folder / path.name).symlink_to(path)
            model = graph.model(net.inputs, net.outputs, location=path.name, entries=entries)
            save_onnx(model, folder / "template.onnx")
            arguments = ["--model_name", TEMPLATE_NAME, "--model_def", "template.onnx", "--mlir", "template.mlir"]
            self._run("model_transform", arguments, folder, f"transform-{net.kind.value}-{net.stage}")
            keep_only(folder, "template.mlir")

        folder, reused = self.store.run(key, produce, what=f"the graph of {net.name}")
        return folder / "template.mlir", reused

    def deploy_key(self, template: Path, net: NetSpec, weights_digest: str) -> str:
        """Key of one net's bmodel."""
        return stage_key(
            "deploy",
            {
                "template": digest_json(template.read_text()),
                "net": net.name,
                "weights": weights_digest,
                "scheme": self.scheme.of_kind(net.kind).digest(),
                "tools": self.toolchain.version,
            },
            code=_CODE,
        )

    def deploy(self, key: str, net: NetSpec, template: Path, weight_path: Path) -> tuple[Path, bool]:
        """Compile one net the long way; returns the folder of its piece, and whether it was there already."""

        def produce(folder: Path) -> None:
            self.compile(template, net.name, weight_path, folder, kind=net.kind, log=f"deploy-{net.name}")
            keep_only(folder, "net.bmodel", PROFILE_NAME)

        return self.store.run(key, produce, what=net.name)

    def compile(self, text: Path, name: str, weight_path: Path, folder: Path, *, kind: NetKind, log: str) -> None:
        """Quantize a net and generate its code: ``net.bmodel``, ``profile.json`` and much else, in ``folder``."""
        _instantiate(text, name, weight_path, folder)
        scheme = self.scheme.of_kind(kind)
        group = ["--q_group_size", str(scheme.group_size)] if scheme.weight_bits == 4 else []
        arguments = ["--mlir", f"{name}.mlir", "--quantize", scheme.vendor_name, *group]
        arguments += ["--quant_input", "--quant_output", "--chip", CHIP, "--model", "net.bmodel"]
        self._run("model_deploy", arguments, folder, log)
        write_profile(folder)

    def combine(self, pieces: Sequence[Path], output: Path, *, what: str) -> None:
        """Combine bmodels into one; equal weights are stored once."""
        work = output.parent / f"{output.stem}.combine"
        work.mkdir()
        arguments = ["--combine", *(str(piece) for piece in pieces), "-o", str(output)]
        self._run("model_tool", arguments, work, f"combine-{what}")
        shutil.rmtree(work)
        if not output.is_file():
            raise CompileError(f"the vendor's model_tool wrote no {output.name}.", hint=f"Its log: {self.logs}.")

    def _run(self, tool: str, arguments: Sequence[str], folder: Path, name: str) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        run_tool(self.toolchain, tool, arguments, cwd=folder, log=self.logs / f"{name}.log")


def _instantiate(template: Path, name: str, weight_path: Path, folder: Path) -> None:
    """Write ``NAME.mlir``: the template's text under another name, over another weight file."""
    text = template.read_text()
    text, modules = re.subn(rf"module @{TEMPLATE_NAME}\b", f"module @{name}", text, count=1)
    text, files = re.subn(r'weight_file = "[^"]*"', f'weight_file = "{weight_path.name}"', text, count=1)
    if not (modules and files):
        raise CompileError(f"the compiler's text for {name} is not as expected: {template}.")
    (folder / f"{name}.mlir").write_text(text)
    (folder / weight_path.name).symlink_to(weight_path)


def keep_only(folder: Path, *names: str) -> None:
    """Remove from a stage's folder what the tools left there beside its results.

    :raises CompileError: one of these is missing.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CompileError(f"the vendor's tools succeeded but wrote no {missing[0]} in {folder}.")
    for path in folder.iterdir():
        if path.name in names:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
