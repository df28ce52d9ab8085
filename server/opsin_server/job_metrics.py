"""What Prometheus reads of fine-tuning jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

ENDINGS = ("succeeded", "failed", "cancelled")


class JobMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.steps = Counter("opsin_training_steps", "Optimizer steps of fine-tuning jobs.", registry=registry)
        self.tokens = Counter("opsin_trained_tokens", "Tokens of rows that were trained on.", registry=registry)
        self._losses: dict[str, float] = {}
        self._ended = Counter("opsin_jobs_ended", "Jobs by how they ended.", ("status",), registry=registry)
        for status in ENDINGS:  # 0 until then, not absent
            self._ended.labels(status)

    def stepped(self, job_id: str, tokens: int, loss: float) -> None:
        self.steps.inc()
        self.tokens.inc(tokens)
        self._losses[job_id] = loss

    def left(self, job_id: str) -> None:
        """It trains no longer, for whichever reason."""
        self._losses.pop(job_id, None)

    def ended(self, status: str) -> None:
        self._ended.labels(status).inc()

    def watch(self, jobs: Callable[[], Mapping[str, int]]) -> None:
        """jobs: how many of this server are in each state that goes on."""
        self._registry.register(_JobCollector(jobs, self._losses))


class _JobCollector(Collector):
    def __init__(self, jobs: Callable[[], Mapping[str, int]], losses: Mapping[str, float]) -> None:
        self._jobs, self._losses = jobs, losses

    def collect(self) -> Iterator[Metric]:
        found = GaugeMetricFamily("opsin_jobs", "Jobs that go on, by state.", labels=("state",))
        for state, count in self._jobs().items():
            found.add_metric((state,), count)
        losses = GaugeMetricFamily(
            "opsin_job_loss", "Training loss of the last step of each running job.", labels=("job",)
        )
        for job_id, loss in list(self._losses.items()):
            losses.add_metric((job_id,), loss)
        yield from (found, losses)
