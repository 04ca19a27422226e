"""A third party's package, installed into a fresh environment and used through the real program."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cli_support import environment
from third_party.tpudeploy_acme import adapter as acme
from tpudeploy.contracts.weights import weight_shapes

SOURCE = Path(__file__).parent / "third_party"


class Environment:
    """A virtual environment that sees the packages of this one, tpudeploy among them."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = folder / "bin" / "python"
        self.home = folder / "home"
        (packages,) = folder.glob("lib/python*/site-packages")
        # addsitedir, not a plain line: tpudeploy may be an editable install, which is a .pth file itself.
        lines = (f"import site; site.addsitedir({path!r})" for path in site.getsitepackages())
        (packages / "outer.pth").write_text("\n".join(lines))

    def install(self, project: Path) -> None:
        command = [str(self.python), "-m", "pip", "--isolated", "install", "--no-index", "--no-deps", "--quiet"]
        subprocess.run([*command, str(project)], check=True, env=self._env())

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), "-m", "tpudeploy.cli.main", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=self._env(), check=False)

    def json(self, *arguments: str | Path) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _env(self) -> dict[str, str]:
        env = environment(self.home)
        return {name: value for name, value in env.items() if not name.startswith(("PYTHONPATH", "PIP_"))}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("third-party")
    made = Environment(folder / "venv")
    made.install(shutil.copytree(SOURCE, folder / "acme", ignore=shutil.ignore_patterns("__pycache__")))
    return made


def write_project(folder: Path, name: str, entry_points: dict[str, str], modules: dict[str, str]) -> Path:
    """A project whose modules have the given text."""
    (folder / f"tpudeploy_{name}").mkdir(parents=True)
    shutil.copy(SOURCE / "build_backend.py", folder)
    points = "".join(f'{point} = "{value}"\n' for point, value in entry_points.items())
    head = (SOURCE / "pyproject.toml").read_text().partition("[project]")[0]
    project = f'{head}[project]\nname = "tpudeploy-{name}"\nversion = "0.1"\n[project.entry-points.tpudeploy]\n{points}'
    (folder / "pyproject.toml").write_text(project)
    for module, text in {"__init__": "", **modules}.items():
        (folder / f"tpudeploy_{name}" / f"{module}.py").write_text(text)
    return folder


def records(fresh: Environment) -> dict[str, dict[str, Any]]:
    return {f"{record['package']}/{record['name']}": record for record in fresh.json("plugins")}


def test_it_is_listed_with_package_version_hooks_and_what_it_provides(fresh: Environment) -> None:
    record = records(fresh)["tpudeploy-acme/acme"]
    assert record["version"] == "1.2.3"
    assert record["hooks"] == ["tpudeploy_backends", "tpudeploy_commands", "tpudeploy_drafters", "tpudeploy_models"]
    assert record["provides"] == ["model acme", "backend acme-chip", "drafter acme-again", "command acme-hello"]
    assert "run exists already" in record["error"]
    table = fresh.run("plugins").stdout
    assert "tpudeploy-acme 1.2.3" in table
    assert "tpudeploy_chatglm3" not in table.split("acme")[1]


def test_its_model_is_listed_and_shown(fresh: Environment) -> None:
    (entry,) = (entry for entry in fresh.json("list-models")["models"] if entry["model"] == "acme")
    assert (entry["name"], entry["context_tokens"]) == ("acme:nano", 256)
    assert [quant["mode"] for quant in entry["quant"] if quant["default"]] == ["int4"]
    shown = fresh.json("show", "acme")
    assert shown["config"]["hidden_size"] == 64
    assert [patch["reason"] for patch in shown["patches"]] == ["Acme says so."] * 4
    assert "Small models by a third party." in fresh.run("show", "acme").stdout


def test_its_model_runs(fresh: Environment, tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(acme._NANO))
    random = torch.Generator().manual_seed(0)
    shapes = weight_shapes(acme.Acme().read_config(acme._NANO))
    save_file(
        {f"acme.{name}": torch.randn(shape, generator=random) for name, shape in shapes}, folder / "model.safetensors"
    )
    options = ["--prompt-ids", "1,2,3", "--max-new-tokens", "5", "--backend", "cpu"]
    said = fresh.json("run", "acme", "--model-dir", folder, *options)
    assert (said["model"], said["quant"], len(said["token_ids"])) == ("acme", "int4", 5)
    assert said["drafted_tokens"] == 0, "three tokens repeat nothing"
    drafted = fresh.json("run", "acme", "--model-dir", folder, *options, "--draft", "acme-again")
    assert drafted["token_ids"] == said["token_ids"]
    assert drafted["drafted_tokens"] > 0
    unknown = fresh.run("run", "acme", "--model-dir", folder, *options, "--draft", "nobody")
    assert unknown.returncode == 2
    assert "acme-again" in unknown.stderr


def test_its_backend_is_known_and_says_why_it_cannot_run(fresh: Environment) -> None:
    done = fresh.run("run", "chatglm3:demo", "Hello", "--backend", "acme-chip")
    assert done.returncode == 7
    assert "there is no Acme chip" in done.stderr
    assert "Buy one." in done.stderr
    names = [finding["name"] for finding in fresh.json("doctor")]
    assert "backend acme-chip" in names


def test_its_command_is_there_and_takes_nothing_over(fresh: Environment) -> None:
    assert fresh.run("acme-hello", "you").stdout == "Acme greets you.\n"
    shown = fresh.run("--help").stdout
    assert "Greet somebody in Acme's name." in shown
    assert "Try to take over" not in shown
    assert "taken over" not in fresh.run("run").stdout


def test_broken_and_duplicate_plugins_are_records_and_nothing_else(fresh: Environment, tmp_path: Path) -> None:
    hook = "from tpudeploy import hookimpl\n@hookimpl\ndef "
    modules = {
        "missing": "import a_package_that_is_not_there\n",
        "syntax": "def broken(:\n",
        "raising": f"{hook}tpudeploy_models():\n    raise RuntimeError('oh no')\n",
        "wrong": f"{hook}tpudeploy_models():\n    return ['no adapter']\n",
        "unknown": f"{hook}tpudeploy_nonsense():\n    return []\n",
        "nothing": "",
        "again": f"{hook}tpudeploy_models():\n    from tpudeploy_acme.adapter import Acme\n    return [Acme()]\n",
        "commands": f"{hook}tpudeploy_commands(app):\n    raise RuntimeError('no commands today')\n",
    }
    points = {name: f"tpudeploy_broken.{name}" for name in modules} | {"acme": "tpudeploy_broken.again"}
    points |= {"absent": "tpudeploy_broken.absent", "attribute": "tpudeploy_broken.nothing:absent"}
    fresh.install(write_project(tmp_path / "broken", "broken", points, modules))
    try:
        found = records(fresh)
        expected = {
            "missing": "ModuleNotFoundError",
            "syntax": "SyntaxError",
            "raising": "RuntimeError: oh no",
            "wrong": "is not a named ModelAdapter",
            "unknown": "tpudeploy_nonsense",
            "nothing": "implements no hook",
            "again": "'acme' is already registered",
            "acme": "another plugin is already called 'acme'",
            "commands": "no commands today",
            "absent": "ModuleNotFoundError",
            "attribute": "AttributeError",
        }
        for name, error in expected.items():
            assert error in found[f"tpudeploy-broken/{name}"]["error"], name
        assert found["tpudeploy/chatglm3"]["error"] == ""
        assert found["tpudeploy-acme/acme"]["provides"][0] == "model acme"
        done = fresh.run("plugins")
        assert done.returncode == 0
        assert "oh no" in done.stdout
        assert fresh.run("show", "acme").returncode == 0
        assert fresh.run("--help").returncode == 0
        unknown = fresh.run("show", "nonsense")
        assert unknown.returncode == 2
        assert "tpudeploy plugins" in unknown.stderr
        verdicts = {finding["name"]: finding["verdict"] for finding in fresh.json("doctor")}
        assert verdicts["plugin missing"] == "warn"
    finally:
        command = [str(fresh.python), "-m", "pip", "--isolated", "uninstall", "--yes", "--quiet", "tpudeploy-broken"]
        subprocess.run(command, check=True, env={**os.environ})


def test_bundled_plugins_come_in_by_the_same_door() -> None:
    """No list of plugins anywhere: the program knows its own from the metadata of its own distribution."""
    import importlib.metadata

    points = importlib.metadata.distribution("tpudeploy").entry_points.select(group="tpudeploy")
    assert {"chatglm3", "cpu", "simulator"} <= {point.name for point in points}
    code = (
        "import sys; from importlib import metadata; metadata.entry_points = lambda **k: []\n"
        "from tpudeploy.plugins import registry; found = registry()\n"
        "sys.exit(len(found.models) + len(found.backends))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
