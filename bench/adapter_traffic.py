"""Adapters under traffic: many on disk for few slots, and swaps while answers stream.

python bench/adapter_traffic.py             three minutes, opsin-mini
python bench/adapter_traffic.py --quick     half a minute

Zipf: one engine has slots for 8 of 200 adapters, another for all. Closed-loop streams ask for one drawn by its rank;
goodput is generated tokens over the time. Swaps: a server answers 16 streams, with and without somebody who loads other
weights under the same name meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import models
import report
import torch
from adapters import convert_all, make_adapters, submit
from ask import COMMAND, ready
from processes import LOCAL, free_port
from stats import Spread, percentile
from tables import table

from opsin_plugins.blocks.adapter_slots import AdapterWeights
from opsin_server.config import EngineConfig
from opsin_server.engine.engine import Engine
from opsin_server.engine.startup.load import load_engine
from opsin_server.ipc.messages import AdapterRef

ADAPTERS, SLOTS, STREAMS, TOKENS = 200, 8, 16, 24


def engine_of(directory: Path, slots: int, host: int) -> Engine:
    config = EngineConfig(
        str(directory), max_loras=slots, max_lora_rank=16, max_cpu_loras=host, lora_projectors=False, max_context=128,
        prefix_cache=False,
    )  # fmt: skip
    return load_engine(config, lambda done, total: None).engine


def zipf(engine: Engine, refs: Sequence[AdapterRef], requests: int) -> tuple[float, list[float], int]:
    """Tokens per second; milliseconds to the first token of requests whose adapter was on disk; slots filled."""
    chance = random.Random(0)
    weights = [1 / rank for rank in range(1, len(refs) + 1)]
    numbers, misses, since = itertools.count(), list[float](), dict[str, float]()
    done = tokens = filled = 0
    place = engine.runner.place

    def counted(slot: int, adapter: AdapterWeights) -> None:
        nonlocal filled
        filled += 1
        place(slot, adapter)

    def ask() -> None:
        name = f"r{next(numbers)}"
        ids = [chance.randrange(300, 1000) for _ in range(16)]
        submit(engine, name, ids, TOKENS, chance.choices(refs, weights)[0])
        since[name] = time.perf_counter()

    engine.runner.place = counted  # type: ignore[method-assign]
    began = time.perf_counter()
    for _ in range(STREAMS):
        ask()
    while done < requests:
        if not engine.busy:
            time.sleep(0.0005)
            continue
        for output in engine.step():
            assert output.error is None, output.error
            tokens += len(output.ids)
            if output.adapter_tier == "disk":
                misses.append(1e3 * (time.perf_counter() - since[output.request_id]))
            if output.finish:
                done += 1
                ask()
    seconds = time.perf_counter() - began
    for name in list(engine.sequences):
        engine.cancel(name)
    return tokens / seconds, misses, filled


def measure_zipf(directory: Path, refs: Sequence[AdapterRef], requests: int, rounds: int) -> list[list[str]]:
    """Every round has new engines, so that each begins with all adapters on disk."""
    every = len(refs)
    forms = {
        "for all": (every, every),
        f"{SLOTS}, host copies of all": (SLOTS, every),
        f"{SLOTS}, {SLOTS} host copies": (SLOTS, SLOTS),
    }
    speeds: dict[str, list[float]] = {name: [] for name in forms}
    misses: dict[str, list[float]] = {name: [] for name in forms}
    filled: dict[str, list[int]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, (slots, copies) in forms.items():
            engine = engine_of(directory, slots, copies)
            speed, late, count = zipf(engine, refs, requests)
            engine.close()
            speeds[name].append(speed)
            misses[name] += late
            filled[name].append(count)
    rows = []
    for name in forms:
        share = Spread.of([a / b for a, b in zip(speeds[name], speeds["for all"], strict=True)])
        first = f"{statistics.median(misses[name]):.0f}, p99 {percentile(misses[name], 99):.0f}"
        per_request = f"{statistics.mean(filled[name]) / requests:.2f}"
        rows.append([name, f"{statistics.median(speeds[name]):.0f}", str(share), first, per_request])
    return rows


def body(client: int, turn: int) -> bytes:
    content = f"Question {client} {turn}: what do you see, and where is it?"
    fields = {"model": "hot", "max_tokens": TOKENS, "stream": True, "temperature": 0}
    return json.dumps({**fields, "messages": [{"role": "user", "content": content}]}).encode()


async def stream(port: int, client: int, until: float, found: list[float]) -> None:
    """Milliseconds per token after the first, of each answer until the time is over."""
    for turn in itertools.count():
        if time.perf_counter() >= until:
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = body(client, turn)
        heads = ("Host: x", "Content-Type: application/json", f"Content-Length: {len(data)}", "Connection: close")
        writer.write("\r\n".join(("POST /v1/chat/completions HTTP/1.1", *heads, "", "")).encode() + data)
        times, text = [], b""
        while piece := await reader.read(65536):
            text += piece
            if b'"content":"' in piece:
                times.append(time.perf_counter())
        writer.close()
        assert b"data: [DONE]" in text, text[-500:]
        if len(times) > 2:
            found.append(1e3 * (times[-1] - times[0]) / (len(times) - 1))


def upload(port: int, archive: bytes) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nhot\r\n'
    head += b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.tar"\r\n\r\n'
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/adapters", head + archive + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )  # fmt: skip
    with LOCAL.open(request, timeout=60) as answer:
        assert answer.status == 201


async def answered(port: int, seconds: float, archives: Sequence[bytes], pause: float) -> tuple[list[float], int]:
    """Milliseconds per token, and how often the adapter was swapped. archives: nothing: it is not."""
    found: list[float] = []
    until, swaps = time.perf_counter() + seconds, 0
    streams = [asyncio.create_task(stream(port, client, until, found)) for client in range(STREAMS)]
    while archives and time.perf_counter() < until:
        await asyncio.to_thread(upload, port, archives[swaps % len(archives)])
        swaps += 1
        await asyncio.sleep(pause)
    await asyncio.gather(*streams)
    return found, swaps


def packed(directory: Path) -> bytes:
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                archive.add(directory / name, name)
        file.seek(0)
        return file.read()


def measure_swaps(directory: Path, made: Sequence[Path], seconds: float, rounds: int) -> list[list[str]]:
    archives, port = [packed(one) for one in made], free_port()
    command = [sys.executable, "-c", COMMAND, "serve", str(directory), "--ephemeral", "--port", str(port)]
    with subprocess.Popen([*command, "--adapter", f"hot={made[-1]}"], stderr=subprocess.DEVNULL) as server:
        try:
            ready(f"http://127.0.0.1:{port}", server, time.time() + 100)
            asyncio.run(answered(port, 2, (), 0))
            rows = []
            for pause, name in ((0.5, "two a second"), (0.05, "as often as it goes")):
                ratios, swapped = [], 0
                for _ in range(rounds):
                    calm, _ = asyncio.run(answered(port, seconds, (), 0))
                    busy, count = asyncio.run(answered(port, seconds, archives, pause))
                    ratios.append(percentile(busy, 99) / percentile(calm, 99))
                    swapped += count
                rows.append([name, f"{swapped / rounds / seconds:.1f}", str(Spread.of(ratios))])
            return rows
        finally:
            server.send_signal(signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    count, requests, rounds, seconds = (40, 100, 1, 4.0) if given.quick else (ADAPTERS, 600, 3, 15.0)
    with tempfile.TemporaryDirectory() as folder:
        directory = models.prepare("mini", Path(folder))
        made = make_adapters(directory, Path(folder) / "adapters", count)
        zipf_rows = measure_zipf(directory, convert_all(directory, made), requests, rounds)
        swap_rows = measure_swaps(directory, made[:8], seconds, rounds)
        shutil.rmtree(Path(folder) / "adapters")
    about = (
        f"opsin-mini, one thread, adapters of rank 16 in all linears. {count} adapters drawn by Zipf's law, {STREAMS} "
        f"closed-loop streams, {requests} requests of {TOKENS} tokens a round, {rounds} rounds, each from cold. "
        "Against all resident: tokens per second in the same round, median (min to max). A miss: its adapter was on "
        "disk."
    )
    heads = ["slots", "tok/s", "against all resident", "first token of a miss, ms", "slots filled a request"]
    shown = table(heads, zipf_rows)
    swaps = table(["swaps", "a second", "p99 time per token, with swaps over without"], swap_rows)
    title, both = "Adapters under traffic", f"{shown}\n\n{swaps}"
    report.write_page("adapter-traffic", title, datetime.now(UTC), about, both, given.out)


if __name__ == "__main__":
    main()
