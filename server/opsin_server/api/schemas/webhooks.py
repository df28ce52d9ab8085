"""Bodies of the routes of webhook endpoints; and what these answer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from opsin_server.chat.fields import Strict, unsupported
from opsin_server.storage.records import WebhookEndpoint

EVENT_TYPES = (
    "fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled",
    "batch.completed", "batch.failed", "batch.expired", "batch.cancelled",
)  # fmt: skip
MASKED = 4  # characters of a secret that its hint shows

Name = Annotated[str, Field(min_length=1, max_length=256)]
Address = Annotated[str, Field(min_length=1, max_length=8192)]
Types = Annotated[list[str], Field(min_length=1, max_length=100, description="of `/v1/webhook_event_types`")]


def known_type(kind: str) -> str:
    """For a validator."""
    if kind not in EVENT_TYPES:
        raise unsupported(kind, f"events here are {', '.join(EVENT_TYPES)}")
    return kind


class CreateWebhook(Strict):
    name: Name
    url: Address
    event_types: Types

    @field_validator("event_types")
    @classmethod
    def _known(cls, types: list[str]) -> list[str]:
        return list(dict.fromkeys(map(known_type, types)))


class ChangeWebhook(Strict):
    name: Name | None = None
    url: Address | None = None
    event_types: Types | None = None

    @field_validator("event_types")
    @classmethod
    def _known(cls, types: list[str] | None) -> list[str] | None:
        return None if types is None else list(dict.fromkeys(map(known_type, types)))


class RotateSecret(Strict):
    keep_old_secret_active_for_24_hours: bool = False


class SampleWebhook(Strict):
    event_type: str

    @field_validator("event_type")
    @classmethod
    def _known(cls, kind: str) -> str:
        return known_type(kind)


def described_webhook(endpoint: WebhookEndpoint, *, secret: bool = False) -> dict[str, Any]:
    """secret: whether it is shown; only who makes an endpoint or a new secret sees it."""
    current = endpoint.secrets[0]
    shown = {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "created_at": int(endpoint.created),
        "updated_at": int(endpoint.updated),
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": list(endpoint.event_types),
        "signing_secret_hint": f"whsec_...{current[-MASKED:]}",
    }
    return {**shown, "signing_secret": current} if secret else shown
