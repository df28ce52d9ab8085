"""One page of a list, as OpenAI's clients read it."""

from __future__ import annotations

from typing import Any

from opsin_server.storage.records import Page


def described_page(data: list[dict[str, Any]], page: Page[Any]) -> dict[str, Any]:
    """data: the page's items, described."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }
