"""What is counted of a request's adapter, from its submission to its end, whichever end that is."""

from __future__ import annotations

from types import TracebackType

from opsin_server.adapter_metrics import AdapterMetrics
from opsin_server.api.token_usage import TokenUsage
from opsin_server.ipc.messages import Output


class AdapterUse:
    def __init__(self, adapter: str, metrics: AdapterMetrics, usage: TokenUsage) -> None:
        self._adapter, self._metrics, self._usage = adapter, metrics, usage
        self._started = False

    def __enter__(self) -> AdapterUse:
        self._metrics.submitted(self._adapter)
        return self

    def start(self, output: Output) -> None:
        """The engine's first output."""
        self._started = True
        self._metrics.started(self._adapter, output.queue_seconds, output.adapter_tier)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._metrics.ended(
            self._adapter,
            started=self._started,
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self._usage.completion_tokens,
        )
