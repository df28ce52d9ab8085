"""What `opsin serve` prints: a progress bar while it loads, and on ready where it is, what it holds, how to ask it."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from opsin_server.config import ServerConfig
from opsin_server.embedded import ABOUT, MODEL, SAMPLES
from opsin_server.ipc.messages import Progress as Loaded
from opsin_server.ipc.messages import Ready

SHOW_AFTER = 1.0  # seconds of loading before a bar is worth a line


class Loading:
    """A progress bar of the weights, for loads that take longer than a second."""

    def __init__(self, console: Console) -> None:
        self.console, self.started = console, time.monotonic()
        self._bar: Progress | None = None

    def __call__(self, progress: Loaded) -> None:
        if self._bar is None and time.monotonic() - self.started > SHOW_AFTER and progress.done < progress.total:
            self._bar = Progress(
                TextColumn("loading weights"), BarColumn(), DownloadColumn(), console=self.console, transient=True
            )
            self._bar.add_task("weights", total=progress.total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=progress.done)

    def done(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def announce(console: Console, config: ServerConfig, ready: Ready, url: str, name: str, seconds: float) -> None:
    memory = ready.memory
    rows = [
        ("url", url),
        ("model", f"{name}  ({config.engine.model})"),
        ("device", f"{ready.device}, kernels: {ready.kernels}"),
        ("weights", f"{_size(memory.weights)} as {ready.dtype}"),
        (
            "KV memory",
            (
                f"{_size(memory.kv_bytes)}: {memory.kv_blocks:,} blocks of {memory.block_size} tokens, "
                f"context up to {ready.max_context:,}, {ready.max_sequences} sequences at once"
            ),
        ),
        ("visual tokens", f"{_size(memory.encoder_bytes)} of cache; {_size(memory.free_before)} of memory were free"),
        ("ready after", f"{seconds:.1f} s"),
    ]
    for title, value in rows:  # whole lines: this is read in logs as often as in a terminal
        console.print(f"{title:<15}{value}", soft_wrap=True, highlight=False, markup=False)
    if Path(config.engine.model) == MODEL:
        console.print(ABOUT, soft_wrap=True, highlight=False)
    console.print("\nAsk it about a picture:\n", highlight=False)
    console.print(curl(url, name, bool(config.api_keys)), soft_wrap=True, highlight=False, markup=False)


def curl(url: str, name: str, guarded: bool) -> str:
    """A command that can be pasted as it is, in any folder."""
    key = ' -H "Authorization: Bearer $OPSIN_API_KEY"' if guarded else ""
    picture = SAMPLES / "red_circle.png"
    return (
        f'curl {url}/v1/chat/completions{key} -H \'Content-Type: application/json\' -d \'{{"model": "{name}", '
        '"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": '
        f"\"data:image/png;base64,'$(base64 < \"{picture}\" | tr -d '\\n')'\"}}}}, "
        '{"type": "text", "text": "What is in the picture?"}]}]}\''
    )


def _size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
