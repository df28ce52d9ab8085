"""A delivery's body and headers, as OpenAI's clients verify them (`client.webhooks.unwrap`), and any library for
Standard Webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence

from opsin_server.storage.records import WebhookDelivery

PREFIX = "whsec_"


def body_of(delivery: WebhookDelivery) -> bytes:
    """The same in every attempt."""
    event = {
        "id": delivery.id,
        "object": "event",
        "created_at": int(delivery.created),
        "type": delivery.type,
        "data": delivery.data,
    }
    return json.dumps(event, separators=(",", ":")).encode()


def signed_headers(delivery_id: str, at: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """at: the attempt's Unix second, since an old one is refused. secrets: each signs, so that whoever still knows the
    one before the last can verify as well."""
    signed = f"{delivery_id}.{at}.".encode() + body
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{_signature(secret, signed)}" for secret in secrets),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
