"""What `opsin serve` prints: a progress bar while it loads, and on ready where it is, what it holds, how to ask it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from opsin_server.config import ServerConfig
from opsin_server.embedded import ABOUT, MODEL, SAMPLES
from opsin_server.ipc.messages import Outlook, Ready
from opsin_server.ipc.messages import Progress as Loaded

SHOW_AFTER = 1.0  # seconds of loading before a bar is worth a line


class Loading:
    """A progress bar of the weights, for loads that take longer than a second."""

    def __init__(self, console: Console) -> None:
        self.console, self.started = console, time.monotonic()
        self._bar: Progress | None = None
        self._told = False

    def __call__(self, progress: Outlook | Loaded) -> None:
        if isinstance(progress, Outlook):
            if not self._told:  # (an engine that starts again says it again)
                show(self.console, outlook_rows(progress))
            self._told = True
            return
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
        (
            "KV memory",
            (
                f"{_size(memory.kv_bytes)}: {memory.kv_blocks:,} blocks of {memory.block_size} tokens, "
                f"context up to {ready.max_context:,}, {ready.max_sequences} sequences at once"
            ),
        ),
        ("visual tokens", f"{_size(memory.encoder_bytes)} kept"),
        ("ready after", f"{seconds:.1f} s"),
    ]
    show(console, rows)
    if Path(config.engine.model) == MODEL:
        console.print(ABOUT, soft_wrap=True, highlight=False)
    console.print("\nAsk it about a picture:\n", highlight=False)
    console.print(curl(url, name, bool(config.api_keys)), soft_wrap=True, highlight=False, markup=False)


def show(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Whole lines: this is read in logs as often as in a terminal."""
    for title, value in rows:
        console.print(f"{title:<15}{value}", soft_wrap=True, highlight=False, markup=False)


def outlook_rows(said: Outlook) -> list[tuple[str, str]]:
    """What `opsin check` prints, and `opsin serve` before it loads."""
    rows = [
        ("family", f"{said.family}: {said.parameters:,} parameters, {said.tensors:,} tensors, each with its place"),
        ("weights", f"{_size(said.weights)} as {said.dtype}; {_size(said.free)} are free"),
        ("1,000 tokens", f"{_size(said.kv_per_1000)} of keys and values"),
    ]
    if said.image_tokens:
        rows.append(
            (
                "largest image",
                (
                    f"{said.image_tokens:,} visual tokens, {_size(said.image_bytes)} of keys and values, about "
                    f"{_size(said.encoder_peak)} while it is encoded"
                ),
            )
        )
    return [*rows, ("verdict", _verdict(said))]


def _verdict(said: Outlook) -> str:
    if said.refusal:
        return f"does not fit: {said.refusal}"
    images = f", {said.images:,} of the largest images at once" if said.image_tokens else ""
    shorter = "" if said.context == said.max_positions else f" of the model's {said.max_positions:,}"
    return f"serves: context {said.context:,}{shorter}{images}"


def curl(url: str, name: str, guarded: bool) -> str:
    """A command that can be pasted as it is, in any folder and shell, whatever the model is called."""
    place = "PICTURE"
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{place}"}},
        {"type": "text", "text": "What is in the picture?"},
    ]
    before, after = json.dumps({"messages": [{"role": "user", "content": content}], "model": name}).split(place, 1)
    picture = f"\"$(base64 < {quote(str(SAMPLES / 'red_circle.png'))} | tr -d '\\n')\""
    key = ' -H "Authorization: Bearer $OPSIN_API_KEY"' if guarded else ""
    address = quote(f"{url}/v1/chat/completions")
    return f"curl {address}{key} -H 'Content-Type: application/json' -d {quote(before)}{picture}{quote(after)}"


def _size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
