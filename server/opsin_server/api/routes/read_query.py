"""What a list is asked for: one page of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from fastapi import Request

from opsin_server.errors import BadRequest, NotFound
from opsin_server.storage.records import Page

UNREAD = ("api-version",)  # Azure's clients send it with every request
LABEL = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)


def known_query(request: Request, known: Collection[str]) -> dict[str, str]:
    """The parameters of the query, without those that all routes take and none reads. Raises BadRequest for one that is
    unknown, or stands twice: it would not act."""
    given = [(name, value) for name, value in request.query_params.multi_items() if name not in UNREAD]
    if unknown := next((name for name, _ in given if name not in known), None):
        message = f"Unrecognized request argument supplied: {unknown[:100]}"
        raise BadRequest(message, param=unknown[:100], code="unknown_parameter")
    found = dict(given)
    if len(given) > len(found):
        twice = next(name for name in found if len(request.query_params.getlist(name)) > 1)
        raise BadRequest(f"'{twice}' is given more than once", param=twice)
    return found


def labels_of(request: Request) -> dict[str, str]:
    """Of parameters that ask for a value of metadata, metadata[KEY]=VALUE: the key."""
    return {name: found[1] for name in request.query_params if (found := LABEL.fullmatch(name))}


def read_limit(query: dict[str, str], default: int, most: int, least: int = 0) -> int:
    return read_number(query, "limit", default, most, least)


def read_number(query: dict[str, str], name: str, default: int, most: int, least: int = 0) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 11 and least <= int(text) <= most):
        raise BadRequest(f"Invalid value for '{name}': it must be a number from {least} to {most:,}", param=name)
    return int(text)


def read_flag(query: dict[str, str], name: str) -> bool:
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise BadRequest(f"Invalid value for '{name}': it must be true or false", param=name)
    return text == "true"


def newest_first(query: dict[str, str], default: str = "desc") -> bool:
    order = query.get("order", default)
    if order not in ("asc", "desc"):
        raise BadRequest("Invalid value for 'order': it must be asc or desc", param="order")
    return order == "desc"


def page_of(
    items: Sequence[dict[str, Any]], query: dict[str, str], limit: int, backwards: bool, noun: str
) -> Page[dict[str, Any]]:
    """A page of a list that is there whole. Raises NotFound for an `after` that is none of its ids."""
    found = list(reversed(items)) if backwards else list(items)
    if (after := query.get("after")) is not None:
        at = next((index for index, item in enumerate(found) if item["id"] == after), None)
        if at is None:
            raise NotFound(f"There is no {noun} {after[:100]} in this list", param="after")
        found = found[at + 1 :]
    return Page(tuple(found[:limit]), len(found) > limit)
