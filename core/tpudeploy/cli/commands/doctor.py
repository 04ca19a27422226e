"""``tpudeploy doctor``: whether this machine is ready, and what to do where it is not."""

from __future__ import annotations

import typer

from tpudeploy.cli import options
from tpudeploy.cli.terminal import print_json, print_line

_MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def doctor(as_json: options.Json = False) -> None:
    """Check Python, packages, plugins, toolchain, backends, disk and memory. Exit code 1 if something fails."""
    from tpudeploy.doctor import examine
    from tpudeploy.plugins import registry
    from tpudeploy.settings import load_settings

    findings = examine(registry(), load_settings())
    failed = any(finding.verdict == "fail" for finding in findings)
    if as_json:
        print_json([finding.model_dump(mode="json") for finding in findings])
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print_line(f"{_MARKS[finding.verdict]}  {finding.name:<{width}}  {finding.detail}")
            if finding.remedy:
                print_line(f"{'':{width + 8}}-> {finding.remedy}")
    if failed:
        raise typer.Exit(1)
