"""House rules that no linter knows: module and function caps. Exit code 1 on a breach."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "backends", "plugins", "scripts")
MODULE_CAP_LINES = 400
FUNCTION_CAP_LINES = 60


def main() -> int:
    """Print each breach on a line."""
    breaches: list[str] = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            breaches += _check(path)
    for breach in breaches:
        print(breach)
    print(f"house rules: {len(breaches)} breaches")
    return 1 if breaches else 0


def _check(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    where = path.relative_to(ROOT)
    lines = len(text.splitlines())
    breaches = [f"{where}: {lines} lines, over the cap of {MODULE_CAP_LINES}"] if lines > MODULE_CAP_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A command's signature is its list of options: what is counted is the body.
            length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            if length > FUNCTION_CAP_LINES:
                breaches.append(f"{where}:{node.lineno}: {node.name} has {length} lines, cap {FUNCTION_CAP_LINES}")
    return breaches


if __name__ == "__main__":
    sys.exit(main())
