"""The packages that tpudeploy uses, by what its own metadata asks for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from packaging.requirements import InvalidRequirement, Requirement

from tpudeploy.contracts.finding import Finding

DISTRIBUTION = "tpudeploy"
_EXTRAS = {
    "cpu": "running bundles on the backend cpu",
    "export": "exporting and compiling models",
    "serve": "answering OpenAI's clients",
}


def check_packages() -> Iterator[Finding]:
    """The packages of the device install, then those of each extra."""
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or ()]
    except (importlib.metadata.PackageNotFoundError, InvalidRequirement):
        remedy = "Install it: `pip install tpudeploy`, or `pip install -e .` in its folder."
        yield Finding(name="packages", verdict="fail", detail="tpudeploy itself is not installed", remedy=remedy)
        return
    needed = [requirement for requirement in requirements if _applies(requirement, "")]
    yield _judge("packages", needed, verdict="fail", remedy="Install them: `pip install tpudeploy`.")
    for extra, purpose in _EXTRAS.items():
        added = [r for r in requirements if r not in needed and _applies(r, extra)]
        remedy = f"For {purpose}: `pip install 'tpudeploy[{extra}]'`."
        yield _judge(f"packages [{extra}]", added, verdict="warn", remedy=remedy)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _judge(name: str, requirements: list[Requirement], *, verdict: str, remedy: str) -> Finding:
    present, wrong = [], []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            present.append(f"{requirement.name} {version}")
        else:
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    detail = ", ".join([*wrong, *present])
    if not wrong:
        return Finding(name=name, verdict="ok", detail=detail)
    return Finding.model_validate({"name": name, "verdict": verdict, "detail": detail, "remedy": remedy})
