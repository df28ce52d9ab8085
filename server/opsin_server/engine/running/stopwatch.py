"""Seconds that work takes on its device."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Begins when it is made. On a GPU nothing waits for it: the device notes when it comes to either end."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self._on_gpu = device.type == "cuda"
        self.mark()

    def mark(self) -> None:
        """The end."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def seconds(self) -> float:
        """Between beginning and end; on a GPU it waits for the end."""
        if not self._on_gpu:
            return self._times[-1] - self._times[0]
        self._events[-1].synchronize()
        return self._events[0].elapsed_time(self._events[-1]) / 1000
