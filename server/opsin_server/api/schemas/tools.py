"""Tools that an answer may call, and whether it must."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from opsin_server.chat.fields import Ignored, Strict, unsupported, wrong

MAX_TOOLS = 128
MAX_TOOL = 2**17  # characters of one, as JSON
CHOICES = 'it must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
MODES = ("none", "auto", "required")
Name = Annotated[str, Field(pattern=r"\A[a-zA-Z0-9_.-]{1,64}\z")]


def _function_only(value: Any) -> Any:
    if value not in (None, "function"):
        raise unsupported(value, 'tools of type "function" are accepted')
    return value


def _object(value: Any) -> Any:
    if value is not None and not isinstance(value, dict):
        raise wrong("it must be a JSON schema, an object")
    if value and value.get("type", "object") != "object":
        raise wrong('it must be a JSON schema of type "object"')
    return value


class FunctionDefinition(Strict):
    name: Name
    description: str | None = None
    parameters: Annotated[
        dict[str, Any] | None, BeforeValidator(_object), Field(description="a JSON schema of an object")
    ] = None
    strict: Annotated[bool | None, Field(description="calls are held to the schema also where they are free")] = None


class Tool(Strict):
    type: Annotated[Literal["function"] | None, BeforeValidator(_function_only)] = None
    function: FunctionDefinition

    # This cannot change an answer.
    cache_control: Ignored = None

    @model_validator(mode="after")
    def _is_not_too_large(self) -> Tool:
        if len(self.as_json()) > MAX_TOOL:
            raise wrong(f"a tool has at most {MAX_TOOL:,} characters as JSON", "function")
        return self

    def as_json(self) -> str:
        """As chat templates are given it: what the client said, in its order."""
        return json.dumps({"type": "function", "function": self._given()}, ensure_ascii=False)

    def _given(self) -> dict[str, Any]:
        return self.function.model_dump(exclude_unset=True, exclude_none=True)


class NamedFunction(Strict):
    name: Name


class NamedChoice(Strict):
    type: Annotated[Literal["function"] | None, BeforeValidator(_function_only)] = None
    function: NamedFunction


def read_choice(value: Any) -> Any:
    """A mode, or a function's name behind "function:", which no mode begins with."""
    if value is None or (isinstance(value, str) and value in MODES):
        return value
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        raise unsupported(value, "send the allowed tools alone in 'tools'")
    function = value.get("function") if isinstance(value, dict) and value.get("type") in (None, "function") else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise unsupported(value, CHOICES)
    return value


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedChoice | None,
    BeforeValidator(read_choice),
]
