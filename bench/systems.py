"""The three systems that are compared, each a process (or two) that answers a file of requests: Opsin, `transformers
serve`, and a scripted `generate`."""

from __future__ import annotations

import json
import math
import re
import select
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from loadgen import Job
from processes import LOCAL, BenchError, Child, Threads, free_port, wait_until

HERE = Path(__file__).parent
START_SECONDS = 120.0
OPSIN, SERVE, GENERATE = "opsin", "transformers serve", "generate"


class System(Protocol):
    """Made: starting. Ready after `wait_ready`. Measured one at a time, the others frozen."""

    name: str
    threads: Threads
    child: Child

    def wait_ready(self) -> None: ...

    def answer(self, requests: Path, streams: int, new_tokens: int, timeout: float) -> dict[str, Any]:
        """What `loadgen` prints. Raises BenchError."""

    def engine_seconds(self) -> dict[str, float]:
        """Cumulative time in the parts of a step, where the system tells."""


class Server:
    """What answers HTTP: measured by a client in a process of its own."""

    def __init__(
        self, name: str, threads: Threads, command: list[str | Path], folder: Path, ready: str, fields: dict[str, Any]
    ) -> None:
        self.name, self.threads, self.port = name, threads, free_port()
        self._ready, self._fields = f"http://127.0.0.1:{self.port}{ready}", fields
        log = folder / f"{name.replace(' ', '-')}-{threads.count}-{threads.wait}-{self.port}.log"
        self.child = Child([*command, "--host", "127.0.0.1", "--port", str(self.port)], threads, log)

    def wait_ready(self) -> None:
        wait_until(lambda: status(self._ready) == 200, START_SECONDS, self.child)

    def answer(self, requests: Path, streams: int, new_tokens: int, timeout: float) -> dict[str, Any]:
        self.wait_ready()
        fields = self._fields | {"stream": True, "max_tokens": new_tokens}
        return load(Job(self.port, str(requests), streams, fields, timeout), self.child)

    def engine_seconds(self) -> dict[str, float]:
        return {}


class Opsin(Server):
    def __init__(self, model: Path, threads: Threads, folder: Path) -> None:
        command: list[str | Path] = [Path(sys.executable).with_name("opsin"), "serve", model]
        command += ["--device", "cpu", "--dtype", "float32", "--threads", str(threads.count)]
        fields = {"temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}}
        command += ["--served-model-name", "measured", "--ephemeral"]
        super().__init__(OPSIN, threads, command, folder, "/health/ready", fields | {"model": "measured"})

    def engine_seconds(self) -> dict[str, float]:
        with LOCAL.open(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            return engine_seconds(answer.read().decode())


class TransformersServe(Server):
    """Its length is fixed by max_tokens and by a generation config without an end token: it refuses `ignore_eos`."""

    def __init__(self, model: Path, threads: Threads, folder: Path) -> None:
        command: list[str | Path] = [sys.executable, HERE / "transformers_serve.py", "serve", model]
        command += ["--device", "cpu", "--dtype", "float32"]
        super().__init__(SERVE, threads, command, folder, "/health", {"model": str(model)})


class Generate:
    """One left-padded `generate` over all streams; no HTTP, no text streamed."""

    def __init__(self, model: Path, threads: Threads, folder: Path) -> None:
        self.name, self.threads = GENERATE, threads
        log = folder / f"generate-{threads.count}-{threads.wait}-{time.monotonic_ns()}.log"
        self.child = Child([sys.executable, HERE / "generate_worker.py", model], threads, log, talks=True)

    def wait_ready(self) -> None:
        self._line(START_SECONDS)

    def answer(self, requests: Path, streams: int, new_tokens: int, timeout: float) -> dict[str, Any]:
        job = {"requests": str(requests), "batch": streams, "new_tokens": new_tokens}
        self.child.pipes[0].write(json.dumps(job).encode() + b"\n")
        self.child.pipes[0].flush()
        return self._line(timeout)

    def engine_seconds(self) -> dict[str, float]:
        return {}

    def _line(self, timeout: float) -> dict[str, Any]:
        stdout = self.child.pipes[1]
        if not select.select([stdout], [], [], timeout)[0]:
            raise BenchError(f"generate gave no answer within {timeout:.0f} s:\n{self.child.log_end()}")
        line = stdout.readline()
        if not line:
            raise BenchError(f"generate ended:\n{self.child.log_end()}")
        return json.loads(line)


KINDS: dict[str, Callable[[Path, Threads, Path], System]] = {
    OPSIN: Opsin,
    SERVE: TransformersServe,
    GENERATE: Generate,
}


def load(job: Job, child: Child) -> dict[str, Any]:
    """Runs the client. Raises BenchError with the server's last words when it fails."""
    command = [sys.executable, str(HERE / "loadgen.py")]
    try:
        done = subprocess.run(
            command, input=json.dumps(asdict(job)).encode(), capture_output=True, timeout=job.timeout + 30, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{child.name} was not done within {job.timeout:.0f} s:\n{child.log_end()}") from None
    if done.returncode != 0:
        raise BenchError(f"the client failed: {done.stderr.decode()[-1500:]}\n{child.name}: {child.log_end()}")
    return json.loads(done.stdout)


def status(url: str) -> int:
    """The answer's status; 0 when there is none."""
    try:
        with LOCAL.open(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def engine_seconds(metrics: str) -> dict[str, float]:
    """Part of a step -> cumulative seconds (or steps), from the /metrics of an Opsin with one engine."""
    rows = re.findall(r'^opsin_step_seconds_total\{[^}]*part="([^"]+)"\} (\S+)$', metrics, re.MULTILINE)
    found = {part: float(value) for part, value in rows if not math.isnan(float(value))}
    counts = dict(re.findall(r"^opsin_(steps|decode_steps)_total\S* (\S+)$", metrics, re.MULTILINE))
    if len(counts) == 2:  # beside the seconds, so that both are differences of one look at the metrics
        found["decode.steps"] = float(counts["decode_steps"])
        found["prefill.steps"] = float(counts["steps"]) - found["decode.steps"]
    return found
