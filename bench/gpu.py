"""The minutes on a GPU, stage by stage against a clock; bench/gpu.sh calls this. bench/README.md says how.

    python bench/gpu.py OUT             the first command: correctness, ceilings, steps of whole models, operations
    python bench/gpu.py OUT --second    the second: what failed or is missing, then tiles
    python bench/gpu.py OUT --tiny      the same rows with small models on a CPU: a rehearsal

OUT gets rows.jsonl (each row as it comes), log.txt (what every process said), and after every stage
gpu-<device>.json and .md. A stage that hangs is cut at its deadline, one that dies is started again for the rows that
it has not tried. State that a second command needs lies in build/gpu.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import gpu_report
import rows
from gpu_plan import LIMITS, PLANS, REHEARSED, Command, Stage, deadlines

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / "build" / "gpu"
BEGAN = "OPSIN_BENCH_BEGAN"  # seconds since 1970 at which gpu.sh began
LEAST = 5.0  # seconds for which a process is worth starting
LEAST_TO_PACK = 6.0
PACKED = 15 * 2**20  # bytes of compiled kernels that are carried back
POLL = 0.1


@dataclass
class Clock:
    """Seconds since the command began."""

    began: float

    @property
    def now(self) -> float:
        return time.time() - self.began

    def say(self, text: str) -> None:
        print(f"[{self.now:6.1f} s] {text}", flush=True)


@dataclass(frozen=True)
class Running:
    """A process, and which rows had been tried when it started."""

    command: Command
    child: subprocess.Popen[bytes]
    before: frozenset[str]


class Minutes:
    """One command: its stages, the file of rows, and the processes that run now."""

    def __init__(self, out: Path, clock: Clock, arguments: Sequence[str] = (), least: float = LEAST) -> None:
        self.out, self.clock, self.arguments, self.least = out, clock, tuple(arguments), least
        self.path, self._shown = out / "rows.jsonl", 0
        self._running: list[Running] = []

    def run(self, stages: Sequence[Stage], ends: Sequence[float]) -> None:
        """ends: seconds after the command's start at which each stage must have ended."""
        self._shown = len(rows.read(self.path))
        for stage, end in zip(stages, ends, strict=True):
            self._stage(stage, end)

    def _stage(self, stage: Stage, end: float) -> None:
        waiting = [command for command in stage.commands if self._wanted(command)]
        if not waiting:
            self.clock.say(f"{stage.name}: every row is there")
            return
        if end - self.clock.now < self.least:
            self.clock.say(f"{stage.name}: no time is left")
            return
        self.clock.say(f"{stage.name}: until {end:.0f} s")
        for command in waiting:
            self._start(stage, command, end)
        while self._running and self.clock.now < end:
            time.sleep(POLL)
            self._show()
            for one in [one for one in self._running if one.child.poll() is not None]:
                self._running.remove(one)
                self._ended(stage, one, end)
        if self._running:
            self.clock.say(f"{stage.name}: cut at its deadline")
            self.stop("cut at the stage's deadline")
        self._show()

    def _wanted(self, command: Command) -> bool:
        """Commands without rows of their own find out themselves what there is to do."""
        done = rows.succeeded(rows.read(self.path))
        return not command.rows or any(row not in done for row in command.rows)

    def _start(self, stage: Stage, command: Command, end: float) -> None:
        before = frozenset(rows.attempted(rows.read(self.path)))
        words = [w.format(workers=max(1, min(8, (os.cpu_count() or 1) - 1))) for w in command.arguments]
        line = [sys.executable, "-m", *words]
        if not command.module:
            line = [
                sys.executable,
                str(ROOT / "bench" / words[0]),
                *words[1:],
                *self.arguments,
                "--rows",
                str(self.path),
            ]
        environment = os.environ | {
            "OPSIN_BENCH_ROWS": str(self.path), "OPSIN_BENCH_END": str(self.clock.began + end), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        with (self.out / "log.txt").open("ab") as log:
            log.write(f"---- {self.clock.now:.1f} s {stage.name}: {' '.join(words)}\n".encode())
            log.flush()
            # A process group and no session of its own: what ends the whole command must reach it.
            child = subprocess.Popen(
                line, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0
            )
        self._running.append(Running(command, child, before))

    def _ended(self, stage: Stage, one: Running, end: float) -> None:
        """A process that died is started again, should it have tried something; a script ends with 0 when it got
        through, whether its rows succeeded or not."""
        _kill(one.child)  # what it left behind
        code, command = one.child.returncode, one.command
        if code == 0:
            return
        self._close(f"the process ended with {code}", among=command)
        self.clock.say(f"{stage.name}: {command.arguments[0]} ended with {code} (log.txt)")
        tried = rows.attempted(rows.read(self.path)) > one.before
        if tried and not command.module and end - self.clock.now > self.least:
            self._start(stage, command, end)

    def _close(self, failure: str, among: Command | None = None) -> None:
        """Rows that began and can no longer end have failed."""
        for row, stage in rows.unfinished(rows.read(self.path)).items():
            if among is None or row in among.rows or not self._running:
                rows.Rows(self.path, stage).failed(row, failure)

    def stop(self, why: str) -> None:
        for one in self._running:
            _kill(one.child)
        self._running.clear()
        self._close(why)

    def _show(self) -> None:
        lines = rows.read(self.path)
        for line in lines[self._shown :]:
            text = gpu_report.line(line)
            if text:
                self.clock.say(text)
        self._shown = len(lines)


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def packed(folder: Path, to: Path) -> None:
    """Compiled kernels, for a second command on another machine: what is loaded there; of what the compiler made on the
    way to it, which Triton wants to see, the names."""
    with tarfile.open(to, "w:xz", preset=1) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = str(path.relative_to(folder))
            if path.suffix in (".cubin", ".json", ".so"):
                archive.add(path, name)
            else:
                archive.addfile(tarfile.TarInfo(name))
    if to.stat().st_size > PACKED:
        to.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--second", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--state", type=Path, default=STATE, help="what a second command needs of the first")
    given = parser.parse_args()
    clock, name = Clock(float(os.environ.get(BEGAN) or time.time())), "second" if given.second else "first"
    given.out.mkdir(parents=True, exist_ok=True)
    minutes = Minutes(given.out.resolve(), clock, ["--tiny"] if given.tiny else [])
    before = given.state / "rows.jsonl"
    if given.second and before.is_file() and not minutes.path.exists():
        shutil.copy(before, minutes.path)
    rows.append(minutes.path, {"command": name, "at": clock.began, "tiny": given.tiny})

    def keep() -> None:
        gpu_report.write(minutes.path, given.out, PLANS)
        given.state.mkdir(parents=True, exist_ok=True)
        shutil.copy(minutes.path, before)

    def ended(number: int, frame: FrameType | None) -> None:
        minutes.stop("the command was stopped")
        keep()
        clock.say("stopped")
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ended)
    stages, times = PLANS[name], REHEARSED if given.tiny else 1
    for stage, end in zip(stages, deadlines(stages, times), strict=True):
        minutes.run([stage], [end])
        keep()
    if clock.now < times * LIMITS[name] - LEAST_TO_PACK:
        packed(Path(os.environ.get("TRITON_CACHE_DIR", given.state / "triton")), given.out / "triton.tar.xz")
    text, right = gpu_report.write(minutes.path, given.out, PLANS)
    print(text)
    clock.say("done")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
