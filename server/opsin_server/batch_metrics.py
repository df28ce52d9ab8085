"""What Prometheus reads of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

ENDINGS = ("completed", "failed", "expired", "cancelled")


class BatchMetrics(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter("opsin_batches_ended", "Batches by how they ended.", ("status",), registry=registry)
        self._lines = Counter("opsin_batch_lines", "Lines of batches by outcome.", ("outcome",), registry=registry)
        self.retried = Counter("opsin_batch_lines_retried", "Lines that were run again.", registry=registry)
        self._batches: Callable[[], Mapping[str, int]] = dict
        self._in_flight: Callable[[], int] = lambda: 0
        for status in ENDINGS:  # 0 until then, not absent
            self._ended.labels(status)
        self.wrote(0, 0)
        registry.register(self)

    def wrote(self, completed: int, failed: int) -> None:
        self._lines.labels("completed").inc(completed)
        self._lines.labels("failed").inc(failed)

    def ended(self, status: str) -> None:
        self._ended.labels(status).inc()

    def watch(self, batches: Callable[[], Mapping[str, int]]) -> None:
        """batches: how many of this server are in each status that goes on."""
        self._batches = batches

    def watch_lines(self, in_flight: Callable[[], int]) -> None:
        self._in_flight = in_flight

    def collect(self) -> Iterator[Metric]:
        found = GaugeMetricFamily("opsin_batches", "Batches that go on, by status.", labels=("status",))
        for status, count in self._batches().items():
            found.add_metric((status,), count)
        yield found
        yield GaugeMetricFamily(
            "opsin_batch_lines_in_flight", "Lines of batches that are run now.", value=self._in_flight()
        )
