"""What is said of each field of a request: tables in markdown, written from the models that check requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as bounds
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from opsin_server.api.reference.titles import TITLES
from opsin_server.chat.fields import Neutral, Unread, shown

TYPES = {str: "string", int: "whole number", float: "number", bool: "true or false", dict: "object"}


def section(model: type[BaseModel]) -> Iterator[str]:
    title, remark = TITLES[model]
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    ignored = [name for name, field in fields.items() if validator(field, Unread)]
    neutral = {name: found for name, field in fields.items() if (found := validator(field, Neutral))}
    acting = {name: field for name, field in fields.items() if name not in ignored and name not in neutral}
    own = model.__annotations__
    acting = dict(sorted(acting.items(), key=lambda item: item[0] not in own))  # what is inherited comes last
    yield f"### {title}"
    if remark:
        yield remark
    rows = [(f"`{name}`", words(field.annotation, field.metadata), remark_of(field)) for name, field in acting.items()]
    if rows:
        yield table(("acts", "values", ""), rows)
    if ignored:
        yield f"Ignored: {', '.join(f'`{name}`' for name in sorted(ignored))}."
    if neutral:
        yield table(("passes only at", "values"), [(f"`{name}`", values(neutral[name])) for name in sorted(neutral)])


def validator(field: FieldInfo, kind: type[Any]) -> Any:
    """The field's validator of this kind, or None."""
    found = (entry.func for entry in field.metadata if isinstance(entry, BeforeValidator))
    return next((function for function in found if isinstance(function, kind)), None)


def values(neutral: Neutral) -> str:
    return " · ".join(f"`{shown(value)}`" for value in neutral.accepted) or "`null` alone"


def remark_of(field: FieldInfo) -> str:
    needed = "required" if field.is_required() else ""
    return "; ".join(part for part in (needed, field.description or "") if part)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type as its sender sees it: without null, which every field may be."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(arguments[0], [*flat(arguments[1:]), *metadata])
    if origin in (Union, UnionType):
        return " or ".join(words(kind, metadata) for kind in arguments if not is_null(kind))
    if origin is Literal:
        return " · ".join(f"`{shown(value)}`" for value in arguments)
    if origin is list:
        return f"list{extent(metadata)} of {words(arguments[0])}"
    if origin is dict and arguments[1] is Any:
        return "object"
    if origin is dict:
        return f"object{extent(metadata)} of {words(arguments[1])}"
    if annotation in TITLES:
        title = TITLES[annotation][0]
        return f"[{title[0].lower()}{title[1:]}](#{anchor(title)})"
    if annotation is Any and (sent := sent_as(metadata)) is not None:
        return words(sent)
    if annotation is Any:
        return "anything"
    return TYPES[annotation] + limits(annotation, metadata)


def sent_as(metadata: Sequence[Any]) -> Any:
    """Of what a validator makes something else: the type that is sent."""
    found = (entry.json_schema_input_type for entry in metadata if isinstance(entry, BeforeValidator))
    return next((kind for kind in found if get_args(kind)), None)


def nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models of its fields that act, in their order."""
    for field in model.model_fields.values():
        yield from models_in(field.annotation)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def is_null(kind: Any) -> bool:
    return (get_args(kind)[0] if get_origin(kind) is Annotated else kind) is NoneType


def flat(metadata: Iterable[Any]) -> Iterator[Any]:
    """`Field(ge=0)` holds its bounds inside."""
    for entry in metadata:
        yield from entry.metadata if isinstance(entry, FieldInfo) else (entry,)


def limits(kind: type, metadata: Sequence[Any]) -> str:
    if kind is str:
        return extent(metadata, " characters")
    at = {type(entry): entry for entry in metadata}
    low = number(at[bounds.Ge].ge) if bounds.Ge in at else f"above {at[bounds.Gt].gt:,}" if bounds.Gt in at else ""
    high = number(at[bounds.Le].le) if bounds.Le in at else f"{at[bounds.Lt].lt - 1:,}" if bounds.Lt in at else ""
    return f" ({low} to {high})" if low and high else ""


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def extent(metadata: Sequence[Any], unit: str = "") -> str:
    least = next((entry.min_length for entry in metadata if isinstance(entry, bounds.MinLen)), 0)
    most = next((entry.max_length for entry in metadata if isinstance(entry, bounds.MaxLen)), 0)
    return f" (at most {most:,}{unit})" if most else " (not empty)" if least else ""


def anchor(title: str) -> str:
    """GitHub's, of a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")
