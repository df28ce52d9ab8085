"""The webhooks of a running server: endpoints as clients make them, and the events that are sent to them."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from opsin_server.api.chores import Chores
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.media.connect import Network
from opsin_server.storage.file_records import new_id
from opsin_server.storage.records import TENANT, Page, WebhookDelivery, WebhookEndpoint
from opsin_server.storage.state import State
from opsin_server.webhook_config import WebhookConfig
from opsin_server.webhook_metrics import WebhookMetrics
from opsin_server.webhooks.send import check_url, send

log = logging.getLogger("opsin.webhooks")

LOOK_SECONDS = 1.0  # between looks at what is due
AT_ONCE = 8  # deliveries
FIRST_DELAY, LONGEST_DELAY = 5.0, 3600.0  # seconds until the next attempt; each is twice the one before
SAMPLES = {"fine_tuning": "ftjob-sample", "batch": "batch_sample"}  # ids, by the first word of the event


class WebhookService:
    def __init__(
        self, config: WebhookConfig, state: State, metrics: WebhookMetrics, network: Network | None = None
    ) -> None:
        self._config, self._records, self._metrics = config, state.webhooks, metrics
        self._network = network or Network()
        self._chores = Chores()

    def open(self) -> None:
        self._chores.begin(LOOK_SECONDS, self._deliver)

    async def close(self) -> None:
        """What was not delivered is when the server is started again."""
        await self._chores.end()

    # ------------------------------------------------------------------------------------------------ endpoints

    async def create(self, name: str, url: str, event_types: Sequence[str]) -> WebhookEndpoint:
        check_url(url, self._config)
        return await asyncio.to_thread(self._records.create, TENANT, name, url, event_types)

    async def get(self, endpoint_id: str) -> WebhookEndpoint:
        return await asyncio.to_thread(self._records.get, TENANT, endpoint_id)

    async def page(self, after: str | None, limit: int) -> Page[WebhookEndpoint]:
        return await asyncio.to_thread(lambda: self._records.page(TENANT, after=after, limit=limit))

    async def change(self, endpoint_id: str, changes: Mapping[str, Any]) -> WebhookEndpoint:
        if "url" in changes:
            check_url(changes["url"], self._config)
        return await asyncio.to_thread(self._records.change, TENANT, endpoint_id, changes)

    async def rotate_secret(self, endpoint_id: str, *, keep_old: bool) -> WebhookEndpoint:
        return await asyncio.to_thread(lambda: self._records.rotate_secret(TENANT, endpoint_id, keep_old=keep_old))

    async def delete(self, endpoint_id: str) -> None:
        await asyncio.to_thread(self._records.delete, TENANT, endpoint_id)

    async def test(self, endpoint_id: str, kind: str) -> int:
        """Sends a sample now, once; the status of the answer. Raises BadRequest where none comes."""
        endpoint = await self.get(endpoint_id)
        data = {"id": SAMPLES[kind.partition(".")[0]]}
        delivery = WebhookDelivery(TENANT, new_id("evt_"), endpoint, kind, data, 1, time.time())
        return await send(delivery, self._config, self._network)

    # ----------------------------------------------------------------------------------------------- deliveries

    async def _deliver(self) -> None:
        """All that is due. (Most of the time nothing is, and only a look is taken.)"""
        if not await asyncio.to_thread(self._records.any_due):
            return
        while due := await asyncio.to_thread(self._records.claim_due, AT_ONCE):
            await asyncio.gather(*map(self._attempt, due))

    async def _attempt(self, delivery: WebhookDelivery) -> None:
        """One that fails for a reason of ours is claimed again when its claim has run out."""
        try:
            status = await send(delivery, self._config, self._network)
            fault = "" if 200 <= status < 300 else f"answered {status}"
        except BadRequest as error:
            fault = error.message
        try:
            await self._ended(delivery, fault)
        except OpsinError as error:
            log.warning("what came of %s could not be noted: %s", delivery.id, error.message)

    async def _ended(self, delivery: WebhookDelivery, fault: str) -> None:
        delay = next_delay(delivery.attempt)
        if not fault:
            await asyncio.to_thread(self._records.finished, delivery)
            self._metrics.attempted("delivered")
        elif await asyncio.to_thread(self._records.postpone, delivery, delay):
            self._metrics.attempted("postponed")
            log.warning("webhook %s to %s, tried again in %.0f s: %s", delivery.id, delivery.endpoint.id, delay, fault)
        else:
            self._metrics.attempted("given_up")
            log.error("webhook %s to %s is given up: %s", delivery.id, delivery.endpoint.id, fault)


def next_delay(attempt: int) -> float:
    """Seconds after an attempt, from 1 on: spread out, so that what failed together does not come back together."""
    longest: float = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(attempt - 1, 30))
    return longest * random.uniform(0.8, 1.2)  # noqa: S311
