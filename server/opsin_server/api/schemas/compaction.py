"""A conversation in short: how the summary of one travels in an item, and is read again."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from opsin_server.chat.fields import wrong

PREFIX = "opsin1."  # of what was packed here
ASKED = (
    "Summarize this conversation for yourself, so that you can go on with it when you see nothing else of it: what was "
    "asked, what you found and said, and what is still to be done."
)


def packed(summary: str) -> str:
    """It is not encrypted: it says no more than whoever gets it has said and heard."""
    return PREFIX + base64.urlsafe_b64encode(summary.encode()).decode()


def unpacked(content: str) -> str:
    """Raises ValueError for what was not packed here."""
    if not content.startswith(PREFIX):
        raise ValueError("it was not made here")
    return base64.b64decode(content.removeprefix(PREFIX), altchars=b"-_", validate=True).decode()


def check_packed(content: str) -> None:
    """For a validator."""
    try:
        unpacked(content)
    except (ValueError, binascii.Error):
        raise wrong("it must be what this server's /v1/responses/compact gave", "encrypted_content") from None


def compaction_item(own_id: str, summary: str) -> dict[str, Any]:
    return {"id": own_id, "type": "compaction", "encrypted_content": packed(summary)}
