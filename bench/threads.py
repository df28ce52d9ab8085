"""Which torch threads should Opsin decode with? One run, one table: each setting alone and beside a busy neighbour.

    python bench/threads.py                   opsin-mini, 3 rounds, some minutes
    python bench/threads.py --models mini,135m

A setting is a number of threads and what a waiting one does: passive sleeps, active spins, spinN spins N times and then
sleeps (GOMP_SPINCOUNT). All servers run side by side; all but the measured one are frozen. The neighbour is one process
that never waits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import models
import report
from cells import Sample, measure
from processes import BenchError, Child, Threads, ended_by_signals
from stats import Spread
from systems import Opsin
from workload import Workload

STREAMS = (1, 8)
SUMMED = ("tpot_ms", "gap_p99_ms", "tok_s", "ttft_ms", "foreign_cpu")
NOTES = """\
TPOT: time per output token after the first, ms; p99: of the time between two pieces of text of one request, ms. Median
(min to max) over the rounds. Others: processor cores that processes outside the benchmark used; the neighbour counts as
one of them."""


@dataclass
class Row:
    model: str
    threads: str
    neighbour: bool
    streams: int
    samples: list[Sample] = field(default_factory=list)

    def summary(self) -> dict[str, Spread]:
        return {name: Spread.of(getattr(s, name) for s in self.samples) for name in SUMMED}


class Trial:
    """One model under every setting."""

    def __init__(self, model: str, settings: list[Threads], new_tokens: int, deadline: float, folder: Path) -> None:
        self.model, self.settings, self.new_tokens, self.deadline = model, settings, new_tokens, deadline
        self.folder = folder
        self.rows: dict[tuple[str, bool, int], Row] = {}
        self.took: dict[tuple[str, bool, int], float] = {}

    def run(self, repeats: int, cache: Path | None) -> list[Row]:
        directory = models.prepare(self.model, cache or self.folder)
        self.workload = Workload(directory, self.folder, 64, seed=1)
        with ExitStack() as stack:
            servers = [Opsin(directory, threads, self.folder) for threads in self.settings]
            for server in servers:
                stack.callback(server.child.stop)
            busy = [sys.executable, "-c", "while True: pass"]
            neighbour = Child(busy, Threads(1, "passive"), self.folder / "neighbour.log")
            stack.callback(neighbour.stop)
            neighbour.freeze()
            self._warm(servers)
            for round_ in range(repeats):
                for loud in (False, True):
                    neighbour.thaw() if loud else neighbour.freeze()
                    for streams in STREAMS:
                        for server in servers if round_ % 2 == 0 else reversed(servers):
                            self._measure(server, loud, streams, round_)
                neighbour.freeze()
        return list(self.rows.values())

    def _warm(self, servers: list[Opsin]) -> None:
        for server in servers:
            server.wait_ready()
        for server in servers:
            server.answer(self.workload.requests(2), 2, 8, 120)
            server.child.freeze()

    def _measure(self, server: Opsin, loud: bool, streams: int, round_: int) -> None:
        key, now = (str(server.threads), loud, streams), time.monotonic()
        left = self.deadline - now
        if left < max(5.0, 1.2 * self.took.get(key, 0.0)):
            return
        requests = self.workload.requests(streams)
        sample = measure(server, requests, streams, self.new_tokens, left + 60, round_)
        self.took[key] = time.monotonic() - now
        self.rows.setdefault(key, Row(self.model, *key)).samples.append(sample)
        said = f"{self.model} {server.threads} x{streams}{' with a neighbour' if loud else ''}"
        print(f"{said}: {sample.tpot_ms:.2f} ms a token", file=sys.stderr, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    out = []
    for row in rows:
        values = [str(Spread(**row["summary"][name])) for name in ("tpot_ms", "gap_p99_ms", "tok_s", "foreign_cpu")]
        out.append([row["model"], row["threads"], "yes" if row["neighbour"] else "no", row["streams"], *values])
    out.sort(key=lambda r: (r[0], r[2], r[3]))
    return report.table(["model", "threads", "neighbour", "streams", "TPOT", "p99", "tok/s", "others"], out)


def default_settings() -> list[Threads]:
    n = machine.cores()
    several = [f"{n}:{wait}" for wait in ("passive", "active", "spin1000", "spin10000")] if n > 1 else []
    return [Threads.parse(t) for t in ["1:passive", *several]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mini", help="comma-separated: mini, 135m")
    parser.add_argument("--threads", type=Threads.parse, action="append", help="like 2:spin1000; may be repeated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0, help="no sample is begun that would end later")
    parser.add_argument("--cache", type=Path, help="keep the 135m model here, and take it from here next time")
    parser.add_argument("--out", type=Path, default=report.default_path("threads", quick=False))
    given = parser.parse_args()
    began, described, rows = datetime.now(UTC), machine.describe(), []
    deadline = time.monotonic() + 60 * given.minutes
    try:
        with ended_by_signals():
            for model in given.models.split(","):
                with tempfile.TemporaryDirectory(prefix="opsin-bench-") as folder:
                    settings = given.threads or default_settings()
                    trial = Trial(model, settings, given.new_tokens, deadline, Path(folder))
                    rows += trial.run(given.repeats, given.cache)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    found = [
        {k: v for k, v in asdict(row).items() if k != "samples"}
        | {"summary": {k: asdict(v) for k, v in row.summary().items()}, "samples": [asdict(s) for s in row.samples]}
        for row in rows
    ]
    document = report.header("threads", began, described) | {"new_tokens": given.new_tokens, "rows": found}
    title = f"# Decode threads: {document['machine']['kind']}"
    report.write(document, given.out, "\n\n".join([title, report.about(document), table(found), NOTES]) + "\n")


if __name__ == "__main__":
    main()
