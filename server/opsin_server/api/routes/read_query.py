"""What a list is asked for: one page of it."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import Request

from opsin_server.errors import BadRequest


def known_query(request: Request, known: Collection[str]) -> dict[str, str]:
    """The parameters of the query. Raises BadRequest for one that is unknown, or stands twice: it would not act."""
    if unknown := next((name for name in request.query_params if name not in known), None):
        message = f"Unrecognized request argument supplied: {unknown[:100]}"
        raise BadRequest(message, param=unknown[:100], code="unknown_parameter")
    found = dict(request.query_params)
    if len(request.query_params.multi_items()) > len(found):
        twice = next(name for name in found if len(request.query_params.getlist(name)) > 1)
        raise BadRequest(f"'{twice}' is given more than once", param=twice)
    return found


def read_limit(query: dict[str, str], default: int, most: int) -> int:
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise BadRequest(f"Invalid value for 'limit': it must be a number from 1 to {most:,}", param="limit")
    return int(text)


def newest_first(query: dict[str, str]) -> bool:
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("Invalid value for 'order': it must be asc or desc", param="order")
    return order == "desc"
