"""Child processes: started with a thread setting, frozen while another one is measured, gone at the end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from machine import alive, tree_cpu_seconds

STOP_SECONDS = 8.0
LIBC = ctypes.CDLL(None)  # looked up here: between fork and exec nothing may be loaded
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # asks servers of this machine without a proxy
THREAD_VARIABLES = re.compile(r"(OMP|GOMP|KMP|MKL|OPENBLAS)_(NUM_THREADS|WAIT_POLICY|SPINCOUNT|BLOCKTIME)")


class BenchError(RuntimeError):
    """Something that a reader of the terminal can act on."""


@dataclass(frozen=True)
class Threads:
    """Torch threads, and what a waiting one does: "passive" sleeps, "active" spins, "spinN" spins N times, then sleeps.

    Written "2:spin1000". libgomp's own default, when nothing is set, is spin300000. "default": nothing is set, which is
    how a program runs as it was installed; its count is 0."""

    count: int
    wait: str

    @classmethod
    def parse(cls, text: str) -> Threads:
        found = re.fullmatch(r"(\d+)(?::(passive|active|spin\d+))?", text)
        if found is None or int(found[1]) < 1:
            raise ValueError(f"{text!r} is not like 1:passive, 2:active or 2:spin1000")
        return cls(int(found[1]), found[2] or "passive")

    def __str__(self) -> str:
        return f"{self.count}:{self.wait}" if self.count else self.wait

    def environment(self) -> dict[str, str]:
        """This process's environment with these threads. To be set before torch is imported."""
        own = {k: v for k, v in os.environ.items() if not THREAD_VARIABLES.fullmatch(k)}
        own |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if not self.count:
            return own
        own |= {"OMP_NUM_THREADS": str(self.count)}
        if self.wait.startswith("spin"):
            return own | {"GOMP_SPINCOUNT": self.wait.removeprefix("spin")}
        return own | {"OMP_WAIT_POLICY": self.wait.upper()}


class Child:
    """A process, together with all that it starts. Its output goes to a log."""

    def __init__(self, command: Sequence[str | Path], threads: Threads, log: Path, talks: bool = False) -> None:
        """talks: standard input and output are pipes for lines, and only standard error goes to the log."""
        self.name, self._log_path, self._log = log.stem, log, log.open("wb")
        self._process = subprocess.Popen(
            [str(word) for word in command],
            env=threads.environment(),
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self.pid = self._process.pid
        self._frozen = False
        self._seen: set[int] = set()  # the child and what it has started, also what has outlived it

    @property
    def pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def check(self) -> None:
        """Raises BenchError with the log's end when the process is dead."""
        code = self._process.poll()
        if code is not None:
            raise BenchError(f"{self.name} ended with {code}:\n{self.log_end()}")

    def log_end(self, size: int = 2000) -> str:
        return self._log_path.read_bytes()[-size:].decode(errors="replace")

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)
        self._frozen = False

    def cpu_seconds(self) -> dict[int, float]:
        """Processor time so far of the child and of all that it started; the child's own has its number."""
        used = tree_cpu_seconds(self.pid)
        self._seen |= used.keys()
        return used

    def stop(self) -> None:
        """Asks, waits, then ends them all: nothing of it is left."""
        self.cpu_seconds()  # now: what outlives the child descends from it no more
        if self._frozen:
            self.thaw()
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._wait_for_descendants()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._log.close()

    def _signal(self, number: int) -> None:
        """To the child and all that it started: the engine process of Opsin is in a session of its own."""
        self.cpu_seconds()
        for pid in self._seen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _wait_for_descendants(self) -> None:
        """A killed process goes in its own time, and may hold memory and a port until then."""
        end = time.monotonic() + STOP_SECONDS
        while any(map(alive, self._seen - {self.pid})) and time.monotonic() < end:
            time.sleep(0.01)


def _die_with_parent() -> None:
    """Even a benchmark that is killed leaves no child behind, frozen or not (prctl's PR_SET_PDEATHSIG)."""
    LIBC.prctl(1, signal.SIGKILL)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(true: Callable[[], bool], seconds: float, child: Child, every: float = 0.02) -> None:
    """Raises BenchError when the child dies first, or the time is over."""
    end = time.monotonic() + seconds
    while not true():
        child.check()
        if time.monotonic() > end:
            raise BenchError(f"{child.name} was not ready within {seconds:.0f} s:\n{child.log_end()}")
        time.sleep(every)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that every `finally` runs and no child is left."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {n: signal.signal(n, leave) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
