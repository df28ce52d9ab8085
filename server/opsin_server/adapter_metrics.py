"""What Prometheus reads of adapters. At most LABELLED of them have a label of their own, those that were used first;
the rest are counted together."""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LABELLED = 100
OTHERS = "(others)"
QUEUE_BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
LOAD_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class AdapterMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._labels: set[str] = set()
        self._waiting: Counts[str] = Counts()
        self._running: Counts[str] = Counts()
        by_adapter = ("adapter",)
        self._requests = Counter("opsin_adapter_requests", "Requests by adapter.", by_adapter, registry=registry)
        self._prompt = Counter("opsin_adapter_prompt_tokens", "Tokens of prompts.", by_adapter, registry=registry)
        self._generated = Counter("opsin_adapter_generation_tokens", "Generated.", by_adapter, registry=registry)
        self._queue = Histogram(
            "opsin_adapter_queue_seconds",
            "Wait in the engine before a request's first step, for its adapter's load and for a slot among it.",
            by_adapter,
            registry=registry,
            buckets=QUEUE_BUCKETS,
        )
        self._lookups = Counter(
            "opsin_adapter_lookups",
            "Requests by where their adapter was found when they came: slot (a hit), host or disk.",
            ("adapter", "tier"),
            registry=registry,
        )
        self._load = Histogram(
            "opsin_adapter_load_seconds",
            "Reading an adapter into the host's memory.",
            by_adapter,
            registry=registry,
            buckets=LOAD_BUCKETS,
        )
        self._failures = Counter(
            "opsin_adapter_load_failures", "Adapters that could not be read.", by_adapter, registry=registry
        )

    def label(self, adapter: str) -> str:
        if adapter not in self._labels:
            if len(self._labels) >= LABELLED:
                return OTHERS
            self._labels.add(adapter)
        return adapter

    def submitted(self, adapter: str) -> None:
        self._requests.labels(self.label(adapter)).inc()
        self._waiting[adapter] += 1

    def started(self, adapter: str, queue_seconds: float, tier: str) -> None:
        """A request's first output came."""
        self._waiting[adapter] -= 1
        self._running[adapter] += 1
        self._queue.labels(self.label(adapter)).observe(queue_seconds)
        if tier:
            self._lookups.labels(self.label(adapter), tier).inc()

    def ended(self, adapter: str, *, started: bool, prompt_tokens: int, completion_tokens: int) -> None:
        (self._running if started else self._waiting)[adapter] -= 1
        self._prompt.labels(self.label(adapter)).inc(prompt_tokens)
        self._generated.labels(self.label(adapter)).inc(completion_tokens)

    def loaded(self, adapter: str, seconds: float, failed: bool) -> None:
        self._load.labels(self.label(adapter)).observe(seconds)
        if failed:
            self._failures.labels(self.label(adapter)).inc()

    def watch(self, slots: Callable[[], int], used: Callable[[], tuple[int, int]]) -> None:
        """slots: how many there are. used: adapters in slots, and in the host's memory."""
        self._registry.register(_AdapterCollector(slots, used, self._active))

    def _active(self) -> tuple[list[str], list[str]]:
        """Adapters that requests run with, and others that some wait for."""
        running = sorted(name for name, count in self._running.items() if count > 0)
        waiting = sorted(name for name, count in self._waiting.items() if count > 0 and self._running[name] <= 0)
        self._running, self._waiting = +self._running, +self._waiting
        return running[:LABELLED], waiting[:LABELLED]


class _AdapterCollector(Collector):
    def __init__(
        self,
        slots: Callable[[], int],
        used: Callable[[], tuple[int, int]],
        active: Callable[[], tuple[list[str], list[str]]],
    ) -> None:
        self._slots, self._used, self._active = slots, used, active

    def collect(self) -> Iterator[Metric]:
        in_slots, on_host = self._used()
        yield GaugeMetricFamily("opsin_adapter_slots", "Slots for adapters on the device.", value=self._slots())
        yield GaugeMetricFamily("opsin_adapter_slots_used", "Of them those that hold one.", value=in_slots)
        yield GaugeMetricFamily("opsin_adapter_host_copies", "Adapters in the host's memory.", value=on_host)
        running, waiting = self._active()
        info = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters of running and of waiting requests; the value is the time.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        info.add_metric((str(self._slots()), ",".join(running), ",".join(waiting)), time.time())
        yield info
