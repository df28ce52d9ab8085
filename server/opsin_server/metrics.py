"""What Prometheus reads: one registry an application, base units, bounded labels. docs/reference.md has every name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from opsin_server.adapter_metrics import AdapterMetrics
from opsin_server.batch_metrics import BatchMetrics
from opsin_server.job_metrics import JobMetrics
from opsin_server.webhook_metrics import WebhookMetrics

# OpenTelemetry's buckets for servers of generative models.
TOKEN_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
REQUEST_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


class EngineStats(Protocol):
    """The part of `ipc.messages.Stats` that is published."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def blocks_used(self) -> int: ...
    @property
    def blocks_cached(self) -> int: ...
    @property
    def blocks_free(self) -> int: ...
    @property
    def steps(self) -> int: ...

    @property
    def decode_steps(self) -> int: ...
    @property
    def steps_ahead(self) -> int: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def prefix_queries(self) -> int: ...
    @property
    def prefix_hits(self) -> int: ...
    @property
    def encoder_queries(self) -> int: ...
    @property
    def encoder_hits(self) -> int: ...
    @property
    def encoder_bytes(self) -> int: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...
    @property
    def training_seconds(self) -> float: ...
    @property
    def training_pieces(self) -> Mapping[str, int]: ...


class EngineCounts(Protocol):
    """What is published of one engine process. restarts: how often it was started again."""

    @property
    def stats(self) -> EngineStats: ...
    @property
    def restarts(self) -> int: ...


Engines: TypeAlias = Callable[[], Mapping[str, EngineCounts]]
"""By name."""


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter("opsin_requests", "Answered requests.", ("route", "status"), registry=registry)
        self._request_seconds = Histogram(
            "opsin_request_seconds",
            "From a request's headers to the last byte of its answer.",
            ("route",),
            registry=registry,
            buckets=REQUEST_BUCKETS,
        )
        self.first_token = Histogram(
            "opsin_time_to_first_token_seconds",
            "From a request's headers to its first token.",
            registry=registry,
            buckets=TOKEN_BUCKETS,
        )
        self.inter_token = Histogram(
            "opsin_inter_token_seconds",
            "Between two tokens of one request (time per output token), as its reader gets them.",
            registry=registry,
            buckets=TOKEN_BUCKETS,
        )
        self.queue = Histogram(
            "opsin_queue_seconds",
            "A request's wait in the engine before its first step.",
            registry=registry,
            buckets=TOKEN_BUCKETS,
        )
        self.prompt_tokens = Counter("opsin_prompt_tokens", "Tokens of prompts, images included.", registry=registry)
        self.image_tokens = Counter("opsin_image_tokens", "Tokens of prompts that are images.", registry=registry)
        self.generation_tokens = Counter("opsin_generation_tokens", "Generated tokens.", registry=registry)

        self.adapters = AdapterMetrics(registry)
        self.jobs = JobMetrics(registry)
        self.batches = BatchMetrics(registry)
        self.webhooks = WebhookMetrics(registry)
        self.broken = Counter("opsin_requests_broken", "Answers that failed after they had begun.", registry=registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def watch(self, engines: Engines, in_flight: Callable[[], int], model: str) -> None:
        """Publishes the newest of the engines' own counts whenever Prometheus asks. model: what clients call it."""
        self.registry.register(_EngineCollector(engines, in_flight, model))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Every sample of an engine has the label `engine`, its name."""

    def __init__(self, engines: Engines, in_flight: Callable[[], int], model: str) -> None:
        self._engines, self._in_flight, self._model = engines, in_flight, model

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "opsin_requests_in_flight", "Admitted requests: fetching, waiting or running.", value=self._in_flight()
        )
        engines = self._engines()
        stats = {name: counts.stats for name, counts in engines.items()}
        for title, text, value in GAUGES:
            yield _filled(GaugeMetricFamily(title, text, labels=("engine",)), stats, value)
        for title, text, value in COUNTERS:
            yield _filled(CounterMetricFamily(title, text, labels=("engine",)), stats, value)
        restarts = CounterMetricFamily(
            "opsin_engine_restarts", "Times the engine was started again.", labels=("engine",)
        )
        blocks = GaugeMetricFamily("opsin_kv_blocks", "Blocks of the KV cache.", labels=("engine", "state"))
        seconds = CounterMetricFamily(
            "opsin_step_seconds", "Time in the parts of the engine's steps.", labels=("engine", "part")
        )
        pieces = CounterMetricFamily(
            "opsin_training_pieces", "Pieces of training that were run.", labels=("engine", "kind")
        )
        for name, counts in engines.items():
            restarts.add_metric((name,), counts.restarts)
            for state, count in _blocks(counts.stats).items():
                blocks.add_metric((name, state), count)
            for part, value_s in counts.stats.seconds.items():
                seconds.add_metric((name, part), value_s)
            for kind, count in counts.stats.training_pieces.items():
                pieces.add_metric((name, kind), count)
        yield from (restarts, blocks, seconds, pieces)
        for title, text, value in VLLM_GAUGES:
            yield _filled(GaugeMetricFamily(title, text, labels=("model_name", "engine")), stats, value, self._model)


Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)


def _filled(
    family: Family, stats: Mapping[str, EngineStats], value: Callable[[EngineStats], float], *labels: str
) -> Family:
    """labels: that all engines have alike, before the engine's name."""
    for name, one in stats.items():
        family.add_metric((*labels, name), value(one))
    return family


def _blocks(stats: EngineStats) -> dict[str, int]:
    return {"used": stats.blocks_used, "cached": stats.blocks_cached, "free": stats.blocks_free}


def _usage(stats: EngineStats) -> float:
    total = sum(_blocks(stats).values())
    return stats.blocks_used / total if total else 0.0


Row = tuple[str, str, Callable[[EngineStats], float]]

GAUGES: tuple[Row, ...] = (
    ("opsin_requests_running", "Requests in the engine's batch.", lambda stats: stats.running),
    ("opsin_requests_waiting", "Requests in the engine's queue.", lambda stats: stats.waiting),
    ("opsin_kv_cache_usage_ratio", "Used part of the KV cache, 0 to 1.", _usage),
    ("opsin_encoder_cache_bytes", "Visual tokens in the encoder cache.", lambda stats: stats.encoder_bytes),
)
COUNTERS: tuple[Row, ...] = (
    ("opsin_steps", "Steps of the engine.", lambda stats: stats.steps),
    ("opsin_decode_steps", "Steps in which every request computes one token.", lambda stats: stats.decode_steps),
    (
        "opsin_steps_ahead",
        "Steps launched before the step before them had ended (on a GPU).",
        lambda stats: stats.steps_ahead,
    ),
    ("opsin_preemptions", "Requests put back to be computed again.", lambda stats: stats.preemptions),
    (
        "opsin_prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache.",
        lambda stats: stats.prefix_queries,
    ),
    ("opsin_prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda stats: stats.prefix_hits),
    ("opsin_encoder_cache_queries", "Images looked up in the encoder cache.", lambda stats: stats.encoder_queries),
    ("opsin_encoder_cache_hits", "Images found in the encoder cache.", lambda stats: stats.encoder_hits),
    ("opsin_training_seconds", "The engine's time in pieces of training.", lambda stats: stats.training_seconds),
)
# What llm-d's endpoint picker reads, with vLLM's names and labels.
VLLM_GAUGES: tuple[Row, ...] = (
    ("vllm:num_requests_running", "As opsin_requests_running.", lambda stats: stats.running),
    ("vllm:num_requests_waiting", "As opsin_requests_waiting.", lambda stats: stats.waiting),
    ("vllm:kv_cache_usage_perc", "As opsin_kv_cache_usage_ratio.", _usage),
)
