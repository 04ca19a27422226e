"""What a function takes: a pydantic model that checks arguments, and the JSON schema that describes them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from pydantic.errors import PydanticUserError

from tpudeploy.errors import UsageError
from tpudeploy.tools.docstring import Docstring

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_LEFT_OUT = ("title", "default")
_OF_SCHEMAS = ("properties", "$defs")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


def arguments_model(function: Callable[..., Any], said: Docstring, where: str) -> type[BaseModel]:
    """A model with one field a parameter, under the parameter's name as its alias.

    :param said: what the docstring says of the parameters.
    :param where: file and line, for errors.
    :raises UsageError: a parameter without a type, or of one that JSON cannot carry.
    """
    hints = _type_hints(function, where)
    fields: dict[str, Any] = {}
    for index, (name, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if parameter.kind in _VARIADIC:
            raise UsageError(f"{where}: a tool needs parameters with names of their own, not {parameter}.")
        if name not in hints:
            raise UsageError(f"{where}: the parameter {name} has no type.", hint=f"Write for example {name}: str.")
        _check_type(hints[name], f"{where}: the parameter {name}")
        settings: dict[str, Any] = {"alias": name}
        description = _description(hints[name]) or said.parameters.get(name, "")
        if description:
            settings["description"] = description
        required = parameter.default is inspect.Parameter.empty
        # Names of their own, for a parameter may be called like a method of pydantic's; Python fills in the defaults.
        fields[f"p{index}"] = (hints[name], Field(**settings) if required else Field(None, **settings))
    return create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)


def parameters_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model's fields as prompts carry it, without titles and defaults."""
    schema = model.model_json_schema(by_alias=True)
    plain: dict[str, Any] = {"type": "object", "properties": _plain(schema).get("properties", {})}
    if "$defs" in schema:
        plain["$defs"] = {name: _plain(value) for name, value in schema["$defs"].items()}
    if schema.get("required"):
        plain["required"] = schema["required"]
    return plain


def _type_hints(function: Callable[..., Any], where: str) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # annotations are code of the user's: anything may be raised
        raise UsageError(f"{where}: its types cannot be read: {type(error).__name__}: {error}.") from error


def _check_type(hint: Any, what: str) -> None:
    try:
        TypeAdapter(hint).json_schema()
    except (PydanticUserError, TypeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UsageError(
            f"{what} has a type that cannot be described to a model: {reason}",
            hint="Use str, int, float, bool, list, dict, Literal, Optional, or what pydantic knows.",
        ) from error


def _description(hint: Any) -> str:
    """What ``Annotated`` says: a text, or an object that holds one, as pydantic's ``Field`` does."""
    for part in (hint, *typing.get_args(hint)):  # Optional[Annotated[...]] too
        for said in getattr(part, "__metadata__", ()):
            text = said if isinstance(said, str) else getattr(said, "description", getattr(said, "documentation", None))
            if isinstance(text, str):
                return " ".join(text.split())
    return ""


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as people write it: without titles and defaults; a value that may also be null is just that value."""
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _OF_SCHEMAS:
            plain[key] = {name: _plain(part) for name, part in value.items()}
        elif key in _LISTS:
            plain[key] = [_plain(part) for part in value]
        elif key == "additionalProperties" and value is True:
            continue
        elif key not in _LEFT_OUT:
            plain[key] = _plain(value) if isinstance(value, dict) else value
    choices = [choice for choice in plain.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        plain = choices[0] | {key: value for key, value in plain.items() if key != "anyOf"}
    order = ("type", "description")
    return {key: plain[key] for key in order if key in plain} | plain
