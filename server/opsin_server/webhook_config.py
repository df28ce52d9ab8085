"""What a server is told of webhooks."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from opsin_server.media_limits import parse_allow
from opsin_server.option import Option


class WebhookConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Raises ValueError for an entry that is no host and no network."""

    webhook_allow: Annotated[
        tuple[str, ...], Option("A private address that webhooks may be sent to.", metavar="HOST|CIDR")
    ] = ()
    webhook_timeout: Annotated[Annotated[float, Meta(ge=0.1, le=30)], Option("Seconds for an endpoint to answer.")] = (
        10.0
    )

    def __post_init__(self) -> None:
        for entry in self.webhook_allow:
            parse_allow(entry, "--webhook-allow")
