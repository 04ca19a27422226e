"""What a function's docstring says: the summary, and what each parameter is."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field

_SPHINX = re.compile(r":param\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)")
_ANY_FIELD = re.compile(r":(?:param|type|returns?|rtype|raises?|yields?|meta)\b")
_SECTION = re.compile(r"(\w+)\s*[:：]\s*$")
_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*[:：]\s*(.*)")
_OF_PARAMETERS = ("args", "arguments", "params", "parameters")
_OTHER_SECTIONS = ("returns", "return", "raises", "yields", "example", "examples", "note", "notes", "todo")


@dataclass
class Docstring:
    """A docstring, read.

    :param summary: the text before any section; paragraphs stay apart.
    :param parameters: what is said of each parameter, by its name.
    """

    summary: str = ""
    parameters: dict[str, str] = field(default_factory=dict)


def read_docstring(text: str) -> Docstring:
    """Read ``:param name:`` fields, or Google's ``Args:`` section, and what stands before them."""
    lines = inspect.cleandoc(text).split("\n")
    ends = [index for index, line in enumerate(lines) if _begins_section(line)]
    first = ends[0] if ends else len(lines)
    found = Docstring(summary=_joined(lines[:first]))
    inside, entry_indent, current = False, -1, ""
    for line in lines[first:]:
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if _begins_section(line):
            section = _SECTION.fullmatch(stripped)
            inside, entry_indent = section is not None and section[1].lower() in _OF_PARAMETERS, -1
            entry = _SPHINX.fullmatch(stripped)
        elif inside and stripped and (entry_indent in (-1, indent)) and indent > 0:
            entry, entry_indent = _ENTRY.fullmatch(stripped), indent
        else:
            if current and stripped and indent > max(entry_indent, 0):  # goes on with what was said before
                found.parameters[current] = f"{found.parameters[current]} {stripped}".strip()
            continue
        current = entry[1] if entry else ""
        if entry:
            found.parameters[current] = entry[2].strip()
    return found


def _begins_section(line: str) -> bool:
    if _ANY_FIELD.match(line):
        return True
    section = _SECTION.fullmatch(line.rstrip()) if line[:1].strip() else None
    return section is not None and section[1].lower() in (*_OF_PARAMETERS, *_OTHER_SECTIONS)


def _joined(lines: list[str]) -> str:
    paragraphs = "\n".join(line.strip() for line in lines).strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs if paragraph)
