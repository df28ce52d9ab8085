"""What is said of an operation of the API, a method of a path: the words in which both descriptions are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import BaseModel

JSON = "application/json"
EVENTS = "text/event-stream"
BYTES = "application/octet-stream"
TEXT = "text/plain"
FORM = "multipart/form-data"

STRING: dict[str, Any] = {"type": "string"}
MAY_FAIL = (400, 401, 431, 500, 503)  # every operation
OF_BODIES = (408, 413)
Answer: TypeAlias = type[Any] | str | None


@dataclass(frozen=True)
class Query:
    """A parameter of an address."""

    name: str
    schema: Mapping[str, Any]
    remark: str
    deep: bool = False  # metadata[KEY]=VALUE

    @property
    def shown(self) -> str:
        return f"{self.name}[KEY]" if self.deep else self.name


@dataclass(frozen=True)
class FormField:
    name: str
    schema: Mapping[str, Any]
    remark: str
    required: bool = False
    is_file: bool = False


@dataclass(frozen=True)
class Operation:
    """bodies: of which a request has one. answers: by content type the type of the answer, or what its `object` is, or
    None for what is no JSON. also: the other paths that mean the same; None: what is below /v1 without it.
    names_things: whether it may name what is not there, otherwise than in its path or by a model's name."""

    name: str  # OpenAI's own `operationId`, where it has one
    method: str
    path: str
    summary: str
    bodies: tuple[type[BaseModel], ...] = ()
    answers: Mapping[str, Answer] = field(default_factory=dict)
    query: tuple[Query, ...] = ()
    also: tuple[str, ...] | None = None
    form: tuple[FormField, ...] = ()
    status: int = 200
    needs_body: bool = True
    needs_key: bool = True
    names_things: bool = False
    has_anthropics_errors: bool = False
    only_with_store: bool = False

    @property
    def aliases(self) -> tuple[str, ...]:
        if self.also is not None:
            return self.also
        return (self.path.removeprefix("/v1"),) if self.path.startswith("/v1/") else ()

    @property
    def has_body(self) -> bool:
        return bool(self.bodies or self.form)

    @property
    def failures(self) -> tuple[int, ...]:
        named = self.names_things or "{" in self.path or any("model" in body.model_fields for body in self.bodies)
        found = {*MAY_FAIL, *(OF_BODIES if self.has_body else ()), *((404,) if named else ())}
        return tuple(sorted(found if self.needs_key else found - {401}))


@dataclass(frozen=True)
class Resource:
    """Operations that are told of together. remark: markdown."""

    title: str
    operations: tuple[Operation, ...]
    remark: str = ""


def of(kind: type[Any] | str) -> dict[str, Answer]:
    """Answers in JSON of this type, or with this `object`."""
    return {JSON: kind}


AFTER = Query("after", STRING, "what follows the thing with this id")
ORDERS = {"type": "string", "enum": ["asc", "desc"]}


def limit(default: int, most: int) -> Query:
    schema = {"type": "integer", "minimum": 0, "maximum": most, "default": default}
    return Query("limit", schema, f"0 to {most:,}; left out, {default:,}")


def order(default: str) -> Query:
    return Query("order", ORDERS, f"`asc`, the oldest first, or `desc`; left out, `{default}`")
