"""JSON objects byte by byte (RFC 8259): what may come next, and when one is complete.

States are values: to try a few bytes costs no copy. Beyond the grammar, spaces in a row, digits of a number and nesting
are bounded, so that a model cannot go on with them for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

MOST_SPACES = 64
MOST_DIGITS = 64
MOST_DEPTH = 64
_SPACES = frozenset(b" \t\r\n")
_DIGITS = frozenset(b"0123456789")
_HEX = frozenset(b"0123456789abcdefABCDEF")
_LITERALS = {ord("t"): b"rue", ord("f"): b"alse", ord("n"): b"ull"}
_CONTINUED = (0x80, 0xBF)


class State(NamedTuple):
    """Where in an object one is.

    :param mode: what is expected or going on.
    :param stack: opening brackets that are not closed.
    :param counted: spaces in a row, digits so far, or bytes that are left.
    :param rest: what is left of a literal, or the part of a number.
    :param key: a string is a key.
    :param span: smallest and largest next byte of a character.
    """

    mode: str
    stack: bytes = b""
    counted: int = 0
    rest: bytes = b""
    key: bool = False
    span: tuple[int, int] = _CONTINUED


START = State("start")
DONE = State("done")


def feed(state: State, data: bytes) -> State | None:
    """The state after some bytes; None where they cannot follow."""
    now: State | None = state
    for byte in data:
        now = _STEPS[now.mode](now, byte) if now is not None else None
        if now is None:
            return None
    return now


def _between(state: State, byte: int) -> State | None:
    """Between tokens of the grammar: spaces, or what the mode expects."""
    if byte in _SPACES:
        return state._replace(counted=state.counted + 1) if state.counted < MOST_SPACES else None
    return _EXPECTED[state.mode](state._replace(counted=0), byte)


def _start(state: State, byte: int) -> State | None:
    return State("first key", b"{") if byte == ord("{") else None


def _key(state: State, byte: int) -> State | None:
    return State("string", state.stack, key=True) if byte == ord('"') else None


def _first_key(state: State, byte: int) -> State | None:
    return _closed(state) if byte == ord("}") else _key(state, byte)


def _colon(state: State, byte: int) -> State | None:
    return State("value", state.stack) if byte == ord(":") else None


def _value(state: State, byte: int) -> State | None:
    if byte == ord('"'):
        return State("string", state.stack)
    if byte in (ord("{"), ord("[")):
        mode = "first key" if byte == ord("{") else "first value"
        return State(mode, state.stack + bytes([byte])) if len(state.stack) < MOST_DEPTH else None
    if byte in _LITERALS:
        return State("literal", state.stack, rest=_LITERALS[byte])
    if byte == ord("-") or byte in _DIGITS:
        part = b"-" if byte == ord("-") else b"0" if byte == ord("0") else b"1"
        return State("number", state.stack, 1, part)
    return None


def _first_value(state: State, byte: int) -> State | None:
    return _closed(state) if byte == ord("]") else _value(state, byte)


def _after(state: State, byte: int) -> State | None:
    in_object = state.stack[-1:] == b"{"
    if byte == ord(","):
        return State("key" if in_object else "value", state.stack)
    return _closed(state) if byte == (ord("}") if in_object else ord("]")) else None


def _closed(state: State) -> State:
    stack = state.stack[:-1]
    return State("after", stack) if stack else DONE


def _string(state: State, byte: int) -> State | None:
    if byte == ord('"'):
        return State("colon" if state.key else "after", state.stack)
    if byte == ord("\\"):
        return state._replace(mode="escape")
    if byte < 0x80:
        return state if byte >= 0x20 else None
    if not 0xC2 <= byte <= 0xF4:
        return None
    left = 1 if byte < 0xE0 else 2 if byte < 0xF0 else 3
    # No character has two encodings, none is a surrogate, none lies beyond U+10FFFF.
    span = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}.get(byte, _CONTINUED)
    return state._replace(mode="character", counted=left, span=span)


def _character(state: State, byte: int) -> State | None:
    if not state.span[0] <= byte <= state.span[1]:
        return None
    mode = "string" if state.counted == 1 else "character"
    return state._replace(mode=mode, counted=state.counted - 1, span=_CONTINUED)


def _escape(state: State, byte: int) -> State | None:
    if byte == ord("u"):
        return state._replace(mode="hex", counted=4)
    return state._replace(mode="string") if byte in b'"\\/bfnrt' else None


def _hex(state: State, byte: int) -> State | None:
    if byte not in _HEX:
        return None
    return state._replace(mode="string" if state.counted == 1 else "hex", counted=state.counted - 1)


def _literal(state: State, byte: int) -> State | None:
    if byte != state.rest[0]:
        return None
    rest = state.rest[1:]
    return state._replace(rest=rest) if rest else State("after", state.stack)


_NUMBER: dict[bytes, dict[str, bytes]] = {
    b"-": {"0": b"0", "1": b"1"},
    b"0": {".": b".", "e": b"e"},
    b"1": {"0": b"1", "1": b"1", ".": b".", "e": b"e"},
    b".": {"0": b"f", "1": b"f"},
    b"f": {"0": b"f", "1": b"f", "e": b"e"},
    b"e": {"0": b"x", "1": b"x", "+": b"+"},
    b"+": {"0": b"x", "1": b"x"},
    b"x": {"0": b"x", "1": b"x"},
}
"""From a part of a number, by the kind of byte, to the next; ``1`` is any digit but zero, ``+`` any sign."""
_WHOLE = frozenset((b"0", b"1", b"f", b"x"))


def _number(state: State, byte: int) -> State | None:
    kind = {ord("0"): "0", ord("."): ".", ord("e"): "e", ord("E"): "e", ord("+"): "+", ord("-"): "+"}.get(byte, "")
    kind = "1" if not kind and byte in _DIGITS else kind
    part = _NUMBER[state.rest].get(kind)
    if part is not None:
        # What has come so far may need one more byte to be a number.
        fits = state.counted < MOST_DIGITS or (part in _WHOLE and state.rest not in _WHOLE)
        return state._replace(counted=state.counted + 1, rest=part) if fits else None
    return _between(State("after", state.stack), byte) if state.rest in _WHOLE else None


_Step = Callable[[State, int], "State | None"]
_EXPECTED: dict[str, _Step] = {
    "start": _start,
    "key": _key,
    "first key": _first_key,
    "colon": _colon,
    "value": _value,
    "first value": _first_value,
    "after": _after,
}
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_EXPECTED, _between),
    "string": _string,
    "character": _character,
    "escape": _escape,
    "hex": _hex,
    "literal": _literal,
    "number": _number,
    "done": lambda state, byte: None,
}
