"""docs/api.md, written from the table of operations and from the models that check requests:

.venv/bin/python -m opsin_server.api.reference.page docs/api.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from opsin_server.api.reference.fields import anchor, nested, section, table
from opsin_server.api.reference.not_served import NOT_SERVED, REFUSED
from opsin_server.api.reference.openapi import RESOURCES
from opsin_server.api.reference.operations import Operation, Query, Resource
from opsin_server.api.reference.titles import TITLES

HEAD = """# The API

Every route and what it does with each field. `GET /openapi.json` says the same to programs, as an OpenAPI 3.1
document; it needs a key where `/v1/models` needs one. Both are written from the models that check requests, and tests
keep this page equal to them, to the routes and to what OpenAI's SDK sends:
`.venv/bin/python -m opsin_server.api.reference.page docs/api.md`.

A field does one of three things: it acts; it cannot change an answer, and is ignored whatever it holds; or it is
accepted only at the values that have no effect, and at any other value is refused with an error that names it. A field
that is in no list is refused by name. Null stands for an optional field that was left out (a misspelt one, too; a
required one is refused as `invalid_value`), and 16.0 for 16. A parameter of an address that is in no list is refused,
where any is read.

Routes that only tell answer HEAD as they answer GET. Any path may have `/openai` in front, and any query `api-version`,
as Azure's clients send them.
[Errors](reference.md#errors) have OpenAI's shape. Keys: `Authorization: Bearer KEY`."""


def page() -> str:
    contents = "\n".join(f"- [{resource.title}](#{anchor(resource.title)})" for resource in RESOURCES)
    seen: set[type[BaseModel]] = set()
    blocks = [HEAD, f"{contents}\n- [What OpenAI has and this server has not](#{anchor(NOT_SERVED_TITLE)})"]
    for resource in RESOURCES:
        blocks += resource_blocks(resource, seen)
    return "\n\n".join([*blocks, *not_served()]) + "\n"


def resource_blocks(resource: Resource, seen: set[type[BaseModel]]) -> Iterator[str]:
    """seen: the models that are on the page already; more are added."""
    yield f"## {resource.title}"
    if resource.remark:
        yield resource.remark
    yield table(("route", "", "also at"), [route(operation) for operation in resource.operations])
    for operation in resource.operations:
        if operation.query:
            yield f"In the address of `{operation.method} {operation.path}`:"
            yield table(("parameter", ""), [parameter(query) for query in operation.query])
        if operation.form:
            yield f"The form of `{operation.method} {operation.path}`:"
            rows = [
                (f"`{field.name}`", "; ".join(filter(None, ("required" if field.required else "", field.remark))))
                for field in operation.form
            ]
            yield table(("field", ""), rows)
    for model in sections(resource.operations, seen):
        yield from section(model)
    if refused := REFUSED.get(resource.title):
        yield "Refused by name:"
        yield table(
            ("at", "values"), [(f"`{at}`", " · ".join(f"`{value}`" for value in kinds)) for at, kinds in refused]
        )


def route(operation: Operation) -> tuple[str, str, str]:
    also = " · ".join(f"`{path}`" for path in operation.aliases)
    return f"`{operation.method} {operation.path}`", operation.summary, also


def parameter(query: Query) -> tuple[str, str]:
    return f"`{query.shown}`", query.remark


def sections(operations: Iterable[Operation], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """A request's own section, then those of what is in it. What stands for another request has none."""
    for operation in operations:
        waiting = list(operation.bodies)
        while waiting:
            model = waiting.pop(0)
            if model not in seen and (model in TITLES or not any(base in TITLES for base in model.__mro__)):
                seen.add(model)
                yield model
                waiting = [*nested(model), *waiting]


NOT_SERVED_TITLE = "What OpenAI has and this server has not"


def not_served() -> Iterator[str]:
    yield f"## {NOT_SERVED_TITLE}"
    yield "These paths are unknown here (404, `unknown_url`), with all that is below them."
    yield table(("path", ""), [(f"`{path}`", what) for path, what in NOT_SERVED])


if __name__ == "__main__":
    # (A path and no redirection: a shell would have emptied the page before a failed import.)
    for path in map(Path, sys.argv[1:]):
        path.write_text(page(), encoding="utf-8")
