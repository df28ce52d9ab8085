"""What Prometheus reads: one registry an application, base units, bounded labels. docs/reference.md has every name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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

        self.broken = Counter("opsin_requests_broken", "Answers that failed after they had begun.", registry=registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def watch(
        self, stats: Callable[[], EngineStats], in_flight: Callable[[], int], restarts: Callable[[], int]
    ) -> None:
        """Publishes the newest of the engine's own counts whenever Prometheus asks."""
        self.registry.register(_EngineCollector(stats, in_flight, restarts))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    def __init__(
        self, stats: Callable[[], EngineStats], in_flight: Callable[[], int], restarts: Callable[[], int]
    ) -> None:
        self._stats, self._in_flight, self._restarts = stats, in_flight, restarts

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        usage = _usage(stats)
        yield _gauge("opsin_requests_in_flight", "Admitted requests: fetching, waiting or running.", self._in_flight())
        yield _gauge("opsin_requests_running", "Requests in the engine's batch.", stats.running)
        yield _gauge("opsin_requests_waiting", "Requests in the engine's queue.", stats.waiting)
        yield _gauge("opsin_kv_cache_usage_ratio", "Used part of the KV cache, 0 to 1.", usage)
        blocks = GaugeMetricFamily("opsin_kv_blocks", "Blocks of the KV cache.", labels=("state",))
        for state, count in (("used", stats.blocks_used), ("cached", stats.blocks_cached), ("free", stats.blocks_free)):
            blocks.add_metric((state,), count)
        yield blocks
        yield _gauge("opsin_encoder_cache_bytes", "Visual tokens in the encoder cache.", stats.encoder_bytes)
        yield _count("opsin_engine_restarts", "Times the engine was started again.", self._restarts())
        yield _count("opsin_steps", "Steps of the engine.", stats.steps)
        yield _count("opsin_decode_steps", "Steps in which every request computes one token.", stats.decode_steps)
        yield _count(
            "opsin_steps_ahead", "Steps launched before the step before them had ended (on a GPU).", stats.steps_ahead
        )
        yield _count("opsin_preemptions", "Requests put back to be computed again.", stats.preemptions)
        yield _count("opsin_prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries)
        yield _count("opsin_prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hits)
        yield _count("opsin_encoder_cache_queries", "Images looked up in the encoder cache.", stats.encoder_queries)
        yield _count("opsin_encoder_cache_hits", "Images found in the encoder cache.", stats.encoder_hits)
        seconds = CounterMetricFamily(
            "opsin_step_seconds", "Time in the parts of the engine's steps.", labels=("part",)
        )
        for part, value in stats.seconds.items():
            seconds.add_metric((part,), value)
        yield seconds
        # What llm-d's endpoint picker reads, under vLLM's names.
        yield _gauge("vllm:num_requests_running", "As opsin_requests_running.", stats.running)
        yield _gauge("vllm:num_requests_waiting", "As opsin_requests_waiting.", stats.waiting)
        yield _gauge("vllm:kv_cache_usage_perc", "As opsin_kv_cache_usage_ratio.", usage)


def _usage(stats: EngineStats) -> float:
    total = stats.blocks_used + stats.blocks_cached + stats.blocks_free
    return stats.blocks_used / total if total else 0.0


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _count(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)
