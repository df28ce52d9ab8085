"""How soon: `opsin serve` ready, the first token of a sample-like picture at idle, /health/live beside 8 streams.

python bench/latency.py                   2 minutes; targets: 6 s (median of 5), 100 ms and 50 ms (p99 of 200)
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import models
import report
from loadgen import HOST, Job
from processes import BenchError, Threads, ended_by_signals
from stats import Spread, percentile, short
from systems import Opsin, load
from workload import Workload

STARTS, PROBES, STREAMS = 5, 200, 8
SAMPLE = (320, 240)  # pixels, as the gallery's pictures
QUESTION_TOKENS = 8  # "What is in the picture?" has 6
READY_S, FIRST_TOKEN_MS, LIVE_MS = 6.0, 100.0, 50.0


def start_times(model: Path, threads: Threads, folder: Path, count: int) -> list[float]:
    """Seconds from the process's start to /health/ready, each a process of its own."""
    out = []
    for _ in range(count):
        start = time.perf_counter()
        server = Opsin(model, threads, folder)
        try:
            server.wait_ready()
            out.append(time.perf_counter() - start)
        finally:
            server.child.stop()
    return out


def first_tokens(server: Opsin, workload: Workload, count: int) -> list[float]:
    """ms from a request to its first token: fresh pictures, one after the other, nothing else running."""
    server.answer(workload.requests(5), 1, 2, 60)
    answers = server.answer(workload.requests(count), 1, 2, 300)["answers"]
    if errors := [a["error"] for a in answers if a["error"]]:
        raise BenchError(errors[0])
    return [1e3 * (a["first"] - a["start"]) for a in answers]


def live_times(server: Opsin, workload: Workload, count: int, new_tokens: int) -> tuple[list[float], float]:
    """ms of each GET /health/live on a connection of its own while 8 streams run, and the share of the probes' time
    in which the streams did run."""
    requests = workload.requests(STREAMS * 3)
    fields: dict[str, Any] = {"model": "measured", "temperature": 0, "ignore_eos": True, "stream": True}
    fields |= {"stream_options": {"include_usage": True}, "max_tokens": new_tokens}
    job = Job(server.port, str(requests), STREAMS, fields, timeout=300)
    out: list[float] = []
    with Background(lambda: load(job, server.child)) as streams:
        time.sleep(1.0)  # the client starts, the pictures are taken in
        while len(out) < count and streams.running:
            out.append(probe(server.port))
            time.sleep(0.02)
    return out, len(out) / count


def probe(port: int) -> float:
    """ms of one GET /health/live, connection included, as a kubelet asks. Raises BenchError unless it is a 200."""
    start = time.perf_counter()
    with socket.create_connection((HOST, port), timeout=30) as connection:
        connection.sendall(f"GET /health/live HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n".encode())
        answer = connection.recv(65536)
    taken = 1e3 * (time.perf_counter() - start)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise BenchError(f"/health/live said {answer[:200]!r}")
    return taken


class Background:
    """A call in a thread; its exception comes out at the end of the `with`."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # handed to the thread that waits
            self._error = error


def run(threads: Threads, quick: bool) -> dict[str, Any]:
    starts, probes = (2, 40) if quick else (STARTS, PROBES)
    began, described = datetime.now(UTC), machine.describe()
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        model = models.prepare("mini", folder)
        ready = start_times(model, threads, folder, starts)
        server = Opsin(model, threads, folder)
        stack.callback(server.child.stop)
        server.wait_ready()
        pictures = Workload(model, folder, QUESTION_TOKENS, seed=2, size=SAMPLE)
        first = first_tokens(server, pictures, probes)
        live, covered = live_times(server, Workload(model, folder, 64, seed=3), probes, new_tokens=600)
    return report.header("latency", began, described) | {
        "threads": str(threads),
        "ready_s": asdict(Spread.of(ready)) | {"target": READY_S, "met": statistics.median(ready) <= READY_S},
        "first_token_ms": _percentiles(first, FIRST_TOKEN_MS),
        "live_ms": _percentiles(live, LIVE_MS) | {"streams": STREAMS, "while_streams_ran": covered},
    }


def _percentiles(values: list[float], target: float) -> dict[str, Any]:
    p50, p99 = percentile(values, 50), percentile(values, 99)
    return {"p50": p50, "p99": p99, "max": max(values), "count": len(values), "target": target, "met": p99 <= target}


def text(document: dict[str, Any]) -> str:
    ready, first, live = document["ready_s"], document["first_token_ms"], document["live_ms"]
    verdict = {True: "met", False: "missed"}
    rows = [
        ["ready after `opsin serve`, s", short(ready["median"]), short(ready["max"]), ready["count"], "6 (median)"],
        ["first token at idle, ms", short(first["p50"]), short(first["p99"]), first["count"], "100 (p99)"],
        [f"/health/live beside {live['streams']} streams, ms", short(live["p50"]), short(live["p99"]), live["count"]],
    ]
    rows[2].append("50 (p99)")
    for row, part in zip(rows, (ready, first, live), strict=True):
        row.append(verdict[part["met"]])
    title = f"# Latency: {document['machine']['kind']}"
    shown = report.table(["", "median", "p99 (ready: max)", "count", "target", ""], rows)
    notes = f"opsin-mini, threads {document['threads']}; each first token is of a fresh {SAMPLE[0]} x {SAMPLE[1]} "
    notes += "picture, and each probe of /health/live has a connection of its own."
    return "\n\n".join([title, report.about(document), shown, notes]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=Threads.parse, default=Threads(1, "passive"), help="like 1:passive")
    parser.add_argument("--quick", action="store_true", help="fewer of all")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    try:
        with ended_by_signals():
            document = run(given.threads, given.quick)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    report.write(document, given.out or report.default_path("latency", given.quick), text(document))


if __name__ == "__main__":
    main()
