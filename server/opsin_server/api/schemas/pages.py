"""One page of a list, as OpenAI's clients read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Literal, TypedDict, TypeVar

from opsin_server.storage.records import Page

Described = TypeVar("Described", bound=Mapping[str, Any])


class Listed(TypedDict, Generic[Described]):
    object: Literal["list"]
    data: list[Described]
    first_id: str | None
    last_id: str | None
    has_more: bool


def described_page(data: list[Described], page: Page[Any]) -> Listed[Described]:
    """data: the page's items, described."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }
