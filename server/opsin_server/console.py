"""What commands print: how far a start is, what is served, what a checkpoint takes, what is installed."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.text import Text

from opsin_plugins.loading.content_digest import ContentDigest
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import ModelFiles, ModelSpec
from opsin_server.config import ServerConfig
from opsin_server.embedded import ABOUT, MODEL, SAMPLES
from opsin_server.ipc.memory_messages import Estimate, MemoryLedger, TrainingEstimate
from opsin_server.ipc.messages import Progress as Loaded
from opsin_server.ipc.messages import Ready

if TYPE_CHECKING:
    from opsin_server.text.embedding_input import EmbeddingFacts

SHOW_AFTER = 1.0  # seconds of loading before a bar is worth a line


class Loading:
    """A progress bar of the weights, for loads that take longer than a second."""

    def __init__(self, console: Console) -> None:
        self.console, self.started = console, time.monotonic()
        self._bar: Progress | None = None
        self._told = False

    def __call__(self, progress: Estimate | Loaded) -> None:
        if isinstance(progress, Estimate):
            if not self._told:  # (an engine that starts again says it again)
                show(self.console, estimate_rows(progress))
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


Rows = Sequence[tuple[str, str]]


class Facts(NamedTuple):
    """Of a model that is served: what there is to say of it, whether it takes pictures, whether it answers."""

    rows: Rows
    sees: bool = True
    answers: bool = True


def embedding_rows(files: ModelFiles, about: EmbeddingFacts) -> list[tuple[str, str]]:
    """Of a dual encoder, as `model_rows`."""
    rows = [("embeddings", f"of {' and '.join(f'{kind}s' for kind in about.inputs)}, {about.dimensions:,} values")]
    return [*rows, ("not read", ", ".join(files.ignored))] if files.ignored else rows


def model_rows(files: ModelFiles, spec: ModelSpec, ends: Sequence[str], sampling: str) -> list[tuple[str, str]]:
    """What was read from the directory that an operator may not expect. ends: the tokens that end an answer;
    sampling: what applies where a request does not say."""
    rows = [
        ("ends with", ", ".join(ends) or "nothing that is known: answers run until max_tokens"),
        ("sampling", f"{sampling} (generation_config.json)" if sampling else "OpenAI's defaults"),
    ]
    if (note := _about_head(files, spec)) is not None:
        rows.append(("output head", note))
    if files.ignored:
        rows.append(("not read", ", ".join(files.ignored)))
    return rows


def _about_head(files: ModelFiles, spec: ModelSpec) -> str | None:
    """Where the files and what the configuration says of the output head are at odds."""
    text = files.config.get("text_config")
    sources = (files.config, text if isinstance(text, Mapping) else {})
    said = {source["tie_word_embeddings"] for source in sources if source.get("tie_word_embeddings") is not None}
    if spec.decoder.tied and said == {False}:
        return "the embedding: the files hold no other, though tie_word_embeddings is false"
    if not spec.decoder.tied and True in said:
        return "the files' own, which differs from the embedding, though tie_word_embeddings is true"
    return None


NEEDS_KEY = ", in a shell that has one of this server's keys in OPSIN_API_KEY"


def announce(
    console: Console, config: ServerConfig, ready: Ready, facts: Facts, url: str, name: str, seconds: float
) -> None:
    memory = ready.memory
    kept = [
        (
            "KV memory",
            (
                f"{_size(memory['keys and values'])}: {memory.kv_blocks:,} blocks of {memory.block_size} tokens, "
                f"context up to {ready.max_context:,}, {ready.max_sequences} sequences at once"
            ),
        ),
        ("adapters", adapter_room(memory)),
    ]
    rows = [
        ("url", url),
        *([("playground", f"{url}/playground")] if config.playground else []),
        ("model", f"{name}  ({config.engine.model})"),
        *facts.rows,
        ("device", f"{ready.device}, kernels: {ready.kernels}"),
        *(kept if facts.answers else [("context", f"{ready.max_context:,} tokens of a text")]),
        ("ready after", f"{seconds:.1f} s"),
    ]
    show(console, rows)
    if Path(config.engine.model) == MODEL:
        console.print(ABOUT, soft_wrap=True, highlight=False)
    title = "Ask it about a picture" if facts.sees else "Ask it"
    guarded = bool(config.api_keys)
    title = f"\n{title if facts.answers else 'Embed a text'}{NEEDS_KEY if guarded else ''}:\n"
    console.print(title, soft_wrap=True, highlight=False)
    command = curl(url, name, guarded, facts.sees) if facts.answers else curl_embeddings(url, name, guarded)
    console.print(command, soft_wrap=True, highlight=False, markup=False)


def show(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Whole lines: this is read in logs as often as in a terminal."""
    for title, value in rows:
        console.print(f"{title:<15}{value}", soft_wrap=True, highlight=False, markup=False)


def estimate_rows(said: Estimate) -> list[tuple[str, str]]:
    """What `opsin check` prints, and `opsin serve` before it loads."""
    rows = [
        ("family", f"{said.family}: {said.parameters:,} parameters, {said.tensors:,} tensors, each with its place"),
        ("weights", f"{_stored(said)}; {_size(said.free)} are free"),
    ]
    if said.dimensions:
        picture = f"pictures of {said.image_tokens:,} tokens, about {_size(said.encoder_peak)} while one is embedded"
        rows.append(("embeddings", f"{said.dimensions:,} values; texts of up to {said.context:,} tokens, {picture}"))
        ledger = [] if said.ledger is None else memory_rows(said.ledger)
        return [*rows, *ledger, ("verdict", f"does not fit: {said.refusal}" if said.refusal else "serves: embeddings")]
    rows.append(("1,000 tokens", f"{_size(said.kv_per_1000)} of keys and values"))
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
    if said.video_tokens or said.no_video:
        room = f"room for {said.video_tokens:,} visual tokens of one, if the chat template shows any"
        rows.append(("videos", f"none: {said.no_video}" if said.no_video else room))
    ledger = [] if said.ledger is None else [*memory_rows(said.ledger), ("adapters", adapter_room(said.ledger))]
    training = [] if said.training is None else [("training", training_room(said.training))]
    return [*rows, *ledger, *training, ("verdict", _verdict(said))]


def _stored(said: Estimate) -> str:
    """What takes less than a thousandth is left out."""
    whole, parts = _size(said.weights), [part for part in said.stored if part[1] >= said.weights / 1000]
    if [name for name, _ in parts] == [said.dtype]:
        return f"{whole} as {said.dtype}"
    shown = ", ".join(f"{_size(size)} {name}" for name, size in parts)
    return f"{whole}: {shown}; computed in {said.dtype}"


def adapter_room(ledger: MemoryLedger) -> str:
    room = ledger.adapters
    if not room.slots:
        return "none: there are no slots for any (--max-loras)"
    own = "" if room.projectors else ", without projectors of their own"
    return (
        f"{room.slots} at once, of rank {room.rank} at most{own} ({_size(room.slots * room.slot_bytes)}); "
        f"{room.host_copies} in the host's memory"
    )


def training_room(said: TrainingEstimate) -> str:
    if not said.rank:
        return f"nothing fits into {_size(said.memory)}: --train-memory {said.least} would do"
    image = f", a picture of {said.image_tokens:,} tokens in a row" if said.image_tokens else ""
    room = f"rank {said.rank} of all its linears, micro-batches of {said.batch:,} tokens{image}"
    return f"{_size(said.memory)}: {room}"


def memory_rows(ledger: MemoryLedger) -> list[tuple[str, str]]:
    """What the memory that is free is set aside for, one line each."""
    parts = [(reserve.bytes, reserve.name) for reserve in ledger.reserves]
    lines = [("", f"{_size(count):>10}  {name}") for count, name in [*parts, (ledger.slack, "left")]]
    return [("memory", f"{_size(ledger.free)} are free, for"), *lines]


def digest_row(console: Console, directory: Path, mmproj: Path | None, *, computed: bool) -> tuple[str, str]:
    """The content digest. mmproj: as of `read_model_files`. computed: read the weights for it where it is not kept; a
    terminal says so meanwhile."""
    content = ContentDigest(read_model_files(directory, mmproj=mmproj))
    if not computed:
        return "digest", content.known() or f"not known yet: --digest reads {_size(content.nbytes)} for it"
    with console.status(f"reading {_size(content.nbytes)} of weights"):
        return "digest", content.compute()


def _verdict(said: Estimate) -> str:
    if said.refusal:
        return f"does not fit: {said.refusal}"
    images = f", {said.images or 'not one'} of the largest images at once" if said.image_tokens else ""
    shorter = "" if said.context == said.max_positions else f" of the model's {said.max_positions:,}"
    trains = " and trains" if said.training is not None and said.training.rank else ""
    return f"serves{trains}: context {said.context:,}{shorter}{images}"


def curl(url: str, name: str, guarded: bool, sees: bool = True) -> str:
    """A command that can be pasted as it is, in any folder and shell, whatever the model is called."""
    key = ' -H "Authorization: Bearer $OPSIN_API_KEY"' if guarded else ""
    head = f"curl {quote(f'{url}/v1/chat/completions')}{key} -H 'Content-Type: application/json' -d "
    if not sees:
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        return head + quote(json.dumps({"messages": messages, "model": name}))
    place = "PICTURE"
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{place}"}},
        {"type": "text", "text": "What is in the picture?"},
    ]
    before, after = json.dumps({"messages": [{"role": "user", "content": content}], "model": name}).split(place, 1)
    picture = f"\"$(base64 < {quote(str(SAMPLES / 'red_circle.png'))} | tr -d '\\n')\""
    return f"{head}{quote(before)}{picture}{quote(after)}"


def curl_embeddings(url: str, name: str, guarded: bool) -> str:
    """The same, for a model that makes embeddings alone."""
    key = ' -H "Authorization: Bearer $OPSIN_API_KEY"' if guarded else ""
    body = json.dumps({"input": "a photo of a cat", "model": name})
    return f"curl {quote(f'{url}/v1/embeddings')}{key} -H 'Content-Type: application/json' -d {quote(body)}"


def _size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


# In a process of its own: this one stays free of torch, and a broken installation becomes a row.
PROBE = """
import json, sys
found = {}
def row(name, look):
    try:
        found[name] = look()
    except Exception as error:
        found[name] = "failed: " + type(error).__name__ + ": " + str(error)
def torch_version():
    import torch
    return torch.__version__ + ", " + str(torch.get_num_threads()) + " thread(s) by default"
def triton_version():
    import triton
    return triton.__version__
def device():
    import torch
    if not torch.cuda.is_available():
        return "cpu (torch sees no CUDA device)"
    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        gpus.append(f"cuda:{index} {torch.cuda.get_device_name(index)}, {free:.1f} of {total:.1f} GiB free")
    return "; ".join(gpus)
def kernels():
    import torch
    from opsin_kernels.dispatch import implementation
    return implementation("cuda" if torch.cuda.is_available() else "cpu")
def memory():
    import torch
    from opsin_server.engine.startup.device import free_bytes
    return f"{free_bytes(torch.device('cpu')) / 2**30:.1f} GiB free for this process"
def c_kernels():
    import torch
    from opsin_kernels.cpu.native import native
    found = native()
    if isinstance(found, str):
        return "none (" + found + "): quantized weights are slow on a CPU"
    return "for " + torch.backends.cpu.get_cpu_capability()
for name, look in (("torch", torch_version), ("triton", triton_version), ("device", device), ("kernels", kernels),
                   ("C kernels", c_kernels), ("memory", memory)):
    row(name, look)
print(json.dumps(found))
"""
OPTIONAL = {"triton"}  # not there outside of Linux, and not needed by the torch definitions


HEADINGS = ("kind", "name", "distribution", "version", "status")


def show_plugins(console: Console, allow: Iterable[str] | None) -> bool:
    """A line a plugin, and what is wrong with one below it. Returns whether all load."""
    found = Registry(allow).status()
    rows = [HEADINGS]
    rows += [(row.kind, row.name, row.distribution, row.version, "failed" if row.error else "ok") for row in found]
    width = console.width if console.is_terminal else sys.maxsize  # (a file has room for whole lines)
    lines = columns(rows, width)
    for line, error in zip(lines, [None, *(row.error for row in found)], strict=True):
        # (Text: names and words are a stranger's, and no markup; soft: nothing is cut off)
        console.print(Text(line, "red" if error else ""), soft_wrap=True)
        for part in textwrap.wrap(error or "", width - 4, break_long_words=False, break_on_hyphens=False):
            console.print(Text(f"    {part}"), soft_wrap=True)
    return not any(row.error for row in found)


def columns(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Rows in columns that nothing is cut out of. Where they are too wide the version is left out, and then a row
    becomes two lines."""
    if (lines := _aligned(rows)) and max(map(len, lines)) <= width:
        return lines
    if (lines := _aligned([(*row[:3], *row[4:]) for row in rows])) and max(map(len, lines)) <= width:
        return lines
    return ["  ".join(row[:2]) + "\n    " + "  ".join(row[2:]) for row in rows]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]


def doctor_rows() -> tuple[list[tuple[str, str]], bool]:
    """What this machine has, and whether everything that a server needs is there."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)  # noqa: S603
    lines = done.stdout.strip().splitlines()
    found: dict[str, str] = json.loads(lines[-1]) if lines else {"torch": f"failed: {done.stderr.strip()[-200:]}"}
    healthy = not any(value.startswith("failed") for name, value in found.items() if name not in OPTIONAL)
    return [("Python", f"{platform.python_version()} at {sys.executable}"), *found.items()], healthy
