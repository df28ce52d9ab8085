"""Opsin against `transformers serve` and a scripted `generate`: same weights, precision (fp32), machine and requests.

    python bench/serve.py                     both models, 3 rounds, under 15 minutes on two cores
    python bench/serve.py --quick             a minute: opsin-mini, one round, one thread

Closed loop; each request is one fresh 224 x 224 picture, a text of 64 tokens and 128 new tokens that nothing ends
early. The systems run side by side, but all that are not being measured are frozen (SIGSTOP). The first round tries
every thread setting on every system; later rounds go on with those near the best, and each system, at each number of
streams, is compared with the setting that was best for itself. `transformers serve` runs as it is installed as well,
with torch's default threads. Every other round runs in reverse order.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import models
import report
from cells import Cell, measure
from processes import BenchError, Threads, ended_by_signals
from systems import GENERATE, KINDS, SERVE, System
from workload import Workload

STREAMS = (1, 8)
REQUESTS = {"mini": {1: 4, 8: 16}, "135m": {1: 1, 8: 8}}  # of a sample, by streams
SHARE = {"mini": 0.3, "135m": 1.0}  # of the time that is left, at most
HOPELESS, NEAR = 0.4, 0.85  # of the best setting's speed
INSTALLED = Threads(0, "default")  # `transformers serve` as it comes, beside the setting that suits it best


@dataclass
class Options:
    models: list[str]
    repeats: int
    threads: list[Threads]
    new_tokens: int
    text_tokens: int
    minutes: float
    seed: int
    quick: bool
    folder: Path
    cache: Path | None


@dataclass
class Comparison:
    """One model on all systems."""

    model: str
    options: Options
    deadline: float
    folder: Path
    cells: dict[tuple[str, int, str], Cell] = field(default_factory=dict)
    took: dict[tuple[str, int, str], float] = field(default_factory=dict)
    skipped: int = 0

    def run(self) -> dict[str, Any]:
        """Returns what was answered to one and the same request by each system."""
        directory = models.prepare(self.model, self.options.cache or self.folder)
        self.workload = Workload(directory, self.folder, self.options.text_tokens, self.options.seed)
        with ExitStack() as stack:
            systems: list[System] = []
            for threads in self.options.threads:
                for kind in KINDS.values():
                    systems.append(kind(directory, threads, self.folder))
                    stack.callback(systems[-1].child.stop)
            systems.append(KINDS[SERVE](directory, INSTALLED, self.folder))
            stack.callback(systems[-1].child.stop)
            texts = self._warm(systems)
            for round_ in range(self.options.repeats):
                self._round(systems, round_)
            return _alike(texts)

    def _warm(self, systems: list[System]) -> dict[str, str]:
        """The same request to all, and two more; then frozen."""
        same, texts = self.workload.requests(1), {}
        for system in systems:
            system.wait_ready()
        for system in systems:
            texts[system.name] = system.answer(same, 1, 32, 120)["answers"][0]["text"]
            system.answer(self.workload.requests(2), 2, 8, 120)
            system.child.freeze()
        return texts

    def _round(self, systems: list[System], round_: int) -> None:
        for streams in STREAMS:
            for system in systems if round_ % 2 == 0 else reversed(systems):
                if self._in_the_running(system, streams, round_):
                    self._measure(system, streams, round_)

    def _in_the_running(self, system: System, streams: int, round_: int) -> bool:
        """The first round tries every setting, but with 8 streams none that was hopeless with one (spinning threads
        beside a busy neighbour); later rounds go on with those that have come near the best."""
        if system.threads == INSTALLED or (round_ == 0 and streams == STREAMS[0]):
            return True
        asked, share = (STREAMS[0], HOPELESS) if round_ == 0 else (streams, NEAR)
        tried = {c.threads: c.peak for c in self._tried(system.name, asked)}
        mine = tried.get(str(system.threads))
        return mine is not None and mine >= share * max(tried.values())

    def best(self, system: str, streams: int) -> str:
        """The thread setting that suited this system best."""
        return max(self._tried(system, streams), key=lambda c: c.speed).threads

    def _tried(self, system: str, streams: int) -> list[Cell]:
        return [c for (name, n, t), c in self.cells.items() if (name, n) == (system, streams) and t != str(INSTALLED)]

    def _measure(self, system: System, streams: int, round_: int) -> None:
        key, options, now = (system.name, streams, str(system.threads)), self.options, time.monotonic()
        left = self.deadline - now
        alone = self.took.get((system.name, STREAMS[0], str(system.threads)), 0.0)
        if left < max(5.0, 1.2 * self.took.get(key, streams * alone)):
            self.skipped += 1
            return
        count = streams if options.quick else REQUESTS[self.model][streams]
        requests = self.workload.requests(count)
        sample = measure(system, requests, streams, options.new_tokens, left + 60, round_)
        requests.unlink()
        self.took[key] = time.monotonic() - now
        self.cells.setdefault(key, Cell(self.model, *key)).samples.append(sample)
        print(
            f"{self.model} round {round_ + 1} {system.name} {system.threads} x{streams}: {sample.tok_s:.1f} tok/s, "
            f"first token {sample.ttft_ms:.0f} ms, then {sample.tpot_ms:.2f} ms a token, "
            f"others used {sample.foreign_cpu:.2f} cores",
            file=sys.stderr,
            flush=True,
        )


def _alike(texts: dict[str, str]) -> dict[str, Any]:
    """How far each system's answer to the same request agrees with `generate`'s, in characters."""
    truth, out = texts[GENERATE], {}
    for name, text in texts.items():
        if name != GENERATE:
            common = next((i for i, (a, b) in enumerate(zip(text, truth, strict=False)) if a != b), len(truth))
            out[name] = {"equal": text == truth, "common_characters": common, "characters": len(truth)}
    return out


def run(options: Options) -> dict[str, Any]:
    """The whole document. Raises BenchError."""
    end = time.monotonic() + 60 * options.minutes
    began, described = datetime.now(UTC), machine.describe()
    cells: list[Cell] = []
    best: dict[tuple[str, str, int], str] = {}
    answers, skipped = {}, 0
    for name in options.models:
        last = name == options.models[-1]
        deadline = end if last else time.monotonic() + SHARE[name] * (end - time.monotonic())
        with tempfile.TemporaryDirectory(prefix=f"opsin-bench-{name}-", dir=options.folder) as folder:
            comparison = Comparison(name, options, deadline, Path(folder))
            answers[name] = comparison.run()
        cells += comparison.cells.values()
        best |= {
            (name, c.system, c.streams): comparison.best(c.system, c.streams)
            for c in comparison.cells.values()
            if c.threads != str(INSTALLED)
        }
        skipped += comparison.skipped
    workload = {
        "picture": "224 x 224",
        "text_tokens": options.text_tokens,
        "new_tokens": options.new_tokens,
        "precision": "float32",
        "loop": "closed",
        "repeats": options.repeats,
        "seed": options.seed,
        "skipped_for_time": skipped,
    }
    return report.document(began, described, workload, cells, best, answers)


def parse(arguments: list[str] | None = None) -> tuple[Options, Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute; not for numbers that are published")
    parser.add_argument("--models", help="comma-separated: mini, 135m")
    parser.add_argument("--repeats", type=int, help="rounds (3; quick: 1)")
    parser.add_argument(
        "--threads", type=Threads.parse, action="append", help="a setting like 1:passive or 2:active; may be repeated"
    )
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=14.0, help="no sample is begun that would end later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="keep the 135m model here (640 MB) and take it from here next time")
    parser.add_argument("--out", type=Path, help="a .json; the table goes beside it")
    given = parser.parse_args(arguments)
    names = (given.models or ("mini" if given.quick else "mini,135m")).split(",")
    if unknown := set(names) - set(models.NAMES):
        parser.error(f"--models knows {', '.join(models.NAMES)}, not {', '.join(sorted(unknown))}")
    if given.new_tokens < 2:
        parser.error("--new-tokens must be at least 2")
    both = ["1:passive"] if given.quick or machine.cores() == 1 else ["1:passive", f"{machine.cores()}:active"]
    options = Options(
        models=names,
        repeats=given.repeats or (1 if given.quick else 3),
        threads=given.threads or [Threads.parse(t) for t in both],
        new_tokens=given.new_tokens,
        text_tokens=given.text_tokens,
        minutes=given.minutes,
        seed=given.seed,
        quick=given.quick,
        folder=Path(tempfile.gettempdir()),
        cache=given.cache,
    )
    return options, given.out or report.default_path("serve", given.quick)


def main() -> None:
    options, out = parse()
    try:
        with ended_by_signals():
            document = run(options)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    report.write(document, out, report.serve_text(document))


if __name__ == "__main__":
    main()
