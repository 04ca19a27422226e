"""One Python function as a tool."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from tpudeploy.contracts.chat import check_tool_name
from tpudeploy.errors import UsageError
from tpudeploy.tools.docstring import read_docstring
from tpudeploy.tools.results import describe_failure
from tpudeploy.tools.signature import arguments_model, parameters_schema


class ArgumentsError(ValueError):
    """A call's arguments are not what the function takes; the message is for the model."""


@dataclass(frozen=True)
class ToolFunction:
    """A function, and what a model is told of it.

    :param name: the function's name.
    :param schema: ``{"name", "description", "parameters"}``, the last a JSON schema.
    :param where: file and line.
    """

    name: str
    schema: dict[str, Any]
    where: str
    _function: Callable[..., Any]
    _arguments: type[BaseModel]

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], where: str) -> ToolFunction:
        """Describe a function by its signature, types and docstring.

        :raises UsageError: it cannot be described.
        """
        said = read_docstring(inspect.getdoc(function) or "")
        model = arguments_model(function, said, f"{where}: {name}")
        schema: dict[str, Any] = {"name": check_tool_name(name)}
        if said.summary:
            schema["description"] = said.summary
        try:
            schema["parameters"] = parameters_schema(model)
        except Exception as error:  # pydantic's own errors have no common base
            raise UsageError(f"{where}: {name} cannot be described as JSON: {error}.") from error
        return cls(name, schema, where, function, model)

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments as the function takes them: checked and converted; those that were not given are not in it.

        :raises ArgumentsError: one is missing, unknown, or of another type.
        """
        try:
            values = self._arguments.model_validate(dict(arguments))
        except ValidationError as error:
            wrong = [(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
            raise ArgumentsError("; ".join(f"{place}: {message}" for place, message in wrong)) from error
        except Exception as error:  # of a validator of the user's, which is anybody's code
            raise ArgumentsError(describe_failure(error)) from error
        names = {field: info.alias or field for field, info in self._arguments.model_fields.items()}
        return {names[field]: getattr(values, field) for field in names if field in values.model_fields_set}

    def call(self, values: Mapping[str, Any]) -> object:
        """Run the function. :param values: what :meth:`read` gave."""
        positional, named = [], dict(values)
        for name, parameter in inspect.signature(self._function).parameters.items():
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                positional.append(named.pop(name, parameter.default))
        result = self._function(*positional, **named)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result
