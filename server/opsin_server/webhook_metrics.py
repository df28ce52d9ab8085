"""What Prometheus reads of webhooks."""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter

Outcome = Literal["delivered", "postponed", "given_up"]


class WebhookMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._attempts = Counter(
            "opsin_webhook_attempts", "Attempts to deliver an event, by outcome.", ("outcome",), registry=registry
        )
        for outcome in get_args(Outcome):  # 0 until then, not absent
            self._attempts.labels(outcome)

    def attempted(self, outcome: Outcome) -> None:
        self._attempts.labels(outcome).inc()
