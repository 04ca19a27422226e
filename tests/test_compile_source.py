"""What can be wrong before anything is built."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tiny import write_checkpoint
from tpudeploy.compile import source
from tpudeploy.compile.source import EXPORT_PACKAGES, open_source, parse_model
from tpudeploy.errors import CheckpointError, MissingPackageError, UnknownNameError
from tpudeploy.plugins import registry
from tpudeploy.settings import Settings


def test_a_device_install_says_what_building_needs(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    adapter, variant = parse_model("chatglm3:demo", registry())
    with pytest.raises(MissingPackageError, match=r"needs torch, which") as caught:
        open_source(adapter, variant, settings)
    assert "tpudeploy[export]" in caught.value.hint


def test_the_packages_are_those_of_the_extra() -> None:
    declared = [Requirement(text) for text in importlib.metadata.requires("tpudeploy") or ()]
    extra = {r.name for r in declared if r.marker and 'extra == "export"' in str(r.marker)}
    assert set(EXPORT_PACKAGES) == extra


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'nope'; known: .*chatglm3"):
        parse_model("nope", registry())
    with pytest.raises(UnknownNameError, match=r"variant of chatglm3 '7b'; known: .*6b-32k"):
        parse_model("chatglm3:7b", registry())


def test_weights_that_are_not_here_name_the_demo(settings: Settings) -> None:
    adapter, variant = parse_model("chatglm3", registry())
    with pytest.raises(CheckpointError, match="chatglm3:6b are not on this machine") as caught:
        open_source(adapter, variant, settings)
    assert "chatglm3:demo" in caught.value.hint


def test_a_folder_of_the_users_wins(tmp_path: Path, settings: Settings) -> None:
    adapter, variant = parse_model("chatglm3", registry())
    opened = open_source(adapter, variant, settings, model_dir=write_checkpoint(tmp_path / "mine"))
    assert opened.title == "chatglm3-custom"
    assert opened.config.eos_ids == (2,)


CACHED = """
import sys
from pathlib import Path
from tpudeploy.compile.build import build_bundle
from tpudeploy.compile.plan import BuildOptions, plan_build
from tpudeploy.compile.source import open_source, parse_model
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.plugins import registry
from tpudeploy.settings import Settings
settings = Settings(home=Path(sys.argv[1]))
source = open_source(*parse_model("chatglm3", registry()), settings, model_dir=Path(sys.argv[2]))
options = BuildOptions(quant=QuantMode.INT8, format=BundleFormat.ONNX, nets=NetPlan(seq_length=64))
built = build_bundle(plan_build(source, options, registry()), settings)
heavy = sorted({"torch", "onnx", "onnxruntime", "transformers"} & set(sys.modules))
print(built.reused, *heavy)
"""


def test_a_bundle_that_is_there_is_found_without_frameworks(tmp_path: Path) -> None:
    """A run of an old bundle must not pay seconds for libraries that it does not use."""
    folder = write_checkpoint(tmp_path / "model")
    said = []
    for _ in range(2):
        command = [sys.executable, "-c", CACHED, str(tmp_path / "home"), str(folder)]
        said.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert said[0][0] == "False"
    assert said[1] == ["True"]
