"""Chat completions that were kept, as OpenAI shows them; and the body that changes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from opsin_server.api.schemas.fine_tuning import checked_pairs
from opsin_server.chat.fields import Strict
from opsin_server.storage.records import StoredAnswer


class ChangeStored(Strict):
    metadata: Annotated[dict[str, str] | None, AfterValidator(checked_pairs)]


def described_stored(stored: StoredAnswer) -> dict[str, Any]:
    return {**stored.answer, "metadata": dict(stored.metadata)}


def described_messages(stored: StoredAnswer) -> Sequence[dict[str, Any]]:
    """Those before the answer, each with an id."""
    return [_message(f"{stored.id}-{number}", dict(message)) for number, message in enumerate(stored.said)]


def _message(own_id: str, message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    return {**message, "id": own_id, "content": None if parts else content, "content_parts": parts}
