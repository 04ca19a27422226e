"""``tpudeploy plugins``: what is installed, what it provides, and what failed to load."""

from __future__ import annotations

from tpudeploy.cli import options
from tpudeploy.cli.terminal import print_json, print_line, print_table


def plugins(as_json: options.Json = False) -> None:
    """List the plugins with their versions, hooks and load errors."""
    from tpudeploy.cli.plugin_commands import described_plugins

    records = described_plugins()
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
        return
    rows = [
        [r.name, f"{r.package} {r.version}".strip(), ", ".join(r.provides) or "-", ", ".join(r.hooks) or "-", r.error]
        for r in records
    ]
    if not rows:
        print_line("No plugin is installed.")
        return
    broken = any(record.error for record in records)
    names = ["plugin", "package", "provides", "hooks", *(["error"] if broken else [])]
    print_table(names, [row[: len(names)] for row in rows])
