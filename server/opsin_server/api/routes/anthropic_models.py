"""What the served models are called, as Anthropic's clients read it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from opsin_server.api.routes.read_query import known_query, read_limit
from opsin_server.api.services import Services
from opsin_server.errors import BadRequest


def anthropic_page(request: Request, services: Services) -> dict[str, Any]:
    """Raises BadRequest, also for an id in `after_id` or `before_id` that no model has."""
    query = known_query(request, ("limit", "after_id", "before_id"))
    names, limit = list(services.adapters.catalogue.names()), read_limit(query, 20, 1000, least=1)
    first, last = 0, len(names)
    if "after_id" in query:
        first = _place(names, query["after_id"], "after_id") + 1
    if "before_id" in query:
        last = _place(names, query["before_id"], "before_id")
    backwards = "before_id" in query and "after_id" not in query
    shown = names[max(first, last - limit) : last] if backwards else names[first:last][:limit]
    return {
        "data": [anthropic_model(name, services) for name in shown],
        "has_more": len(shown) < max(0, last - first),
        "first_id": shown[0] if shown else None,
        "last_id": shown[-1] if shown else None,
    }


def anthropic_model(name: str, services: Services) -> dict[str, Any]:
    """Raises NotFound."""
    version, ready = services.adapters.catalogue.find(name), services.engine.ready
    created = services.created if version is None else int(version.created)
    context = None if ready is None else ready.max_context
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": context,
        "max_tokens": context,
    }


def _place(names: list[str], name: str, param: str) -> int:
    if name not in names:
        raise BadRequest(f"'{param}' is no model's id", param=param)
    return names.index(name)
