"""A batch of pictures beside chats: what each costs the other.

python bench/batches.py            2,000 pictures, 2 rounds; ten minutes on a quiet machine
python bench/batches.py --quick    200 pictures, 1 round; a minute

Four streams chat, each with a fresh picture, 256 tokens of answer, and a pause behind it. A round has the chats alone,
the batch alone, and both. The time in which no chat is under way while they are alone is the idle share; the batch's
time beside them is compared with its time alone over that share.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import models
import report
from job_files import Server
from loadgen import Job
from processes import BenchError, ended_by_signals
from stats import Spread, percentile, short
from systems import load
from workload import Workload

STREAMS, PAUSE = 4, 1.0  # seconds
CHAT_TOKENS, LINE_TOKENS, TEXT_TOKENS = 256, 16, 16
ALONE_SECONDS = 40.0
GAP_RATIO, TIME_RATIO = 1.3, 1.15  # targets
PERCENTILES = (1, 10, 25, 50, 75, 90, 95, 99, 99.9)
ENDPOINT = "/v1/chat/completions"
FIELDS = {"model": "measured", "temperature": 0, "ignore_eos": True}


@dataclass
class Chats:
    """ms to first tokens and between tokens; the share of the time in which any was under way, and in which the engine
    was in a step; cores that others used."""

    first: list[float]
    gaps: list[float]
    busy: float
    engine: float
    others: float

    def row(self) -> list[str]:
        numbers = [percentile(self.gaps, 50), percentile(self.gaps, 99), percentile(self.first, 50)]
        shares = [short(self.busy), short(self.engine), short(self.others)]
        return [*map(short, [*numbers, percentile(self.first, 99)]), str(len(self.gaps)), *shares]


@dataclass
class Round:
    chats: Chats
    beside: Chats
    beside_seconds: float
    batch_seconds: float  # alone

    @property
    def gap_ratio(self) -> float:
        return percentile(self.beside.gaps, 99) / percentile(self.chats.gaps, 99)

    @property
    def time_ratio(self) -> float:
        """Of the time that the idle share allows."""
        return self.beside_seconds * (1 - self.chats.busy) / self.batch_seconds


class Bench:
    def __init__(self, folder: Path, pictures: int) -> None:
        self._folder, self._pictures, self.server = folder, pictures, Server(folder)
        model = models.prepare("mini", folder)
        self._chats = Workload(model, folder, TEXT_TOKENS, seed=11)
        self._lines = Workload(model, folder, TEXT_TOKENS, seed=12)

    def chats(self, seconds: float) -> Chats:
        with self._chatting() as found:
            time.sleep(seconds)
        return found[0]

    def batch(self) -> float:
        return self._run(self._input())

    def _run(self, lines: Path) -> float:
        """Seconds from the first line to the last answer's file."""
        file = self.server.upload(lines, "batch")
        made = self.server.post("/batches", input_file_id=file, endpoint=ENDPOINT, completion_window="24h")
        began = 0.0
        while True:
            found = self.server.ask("GET", f"/batches/{made['id']}")
            if not began and found["status"] == "in_progress":
                began = time.perf_counter()
            if found["status"] in ("completed", "failed"):
                break
            done = found["request_counts"]["completed"] / self._pictures
            time.sleep(_until_asked_again(done, time.perf_counter() - began if began else 0.0))
        if found["request_counts"] != {"total": self._pictures, "completed": self._pictures, "failed": 0}:
            raise BenchError(f"the batch ended with {found}")
        return time.perf_counter() - began

    def both(self) -> tuple[Chats, float]:
        lines = self._input()  # (drawn before anybody chats: that is no work of the server)
        with self._chatting() as found:
            seconds = self._run(lines)
        return found[0], seconds

    @contextmanager
    def _chatting(self) -> Iterator[list[Chats]]:
        """What the chats saw while the block ran, once it has ended."""
        stop, found = self._folder / f"stop-{time.monotonic_ns()}", list[Chats]()
        fields = FIELDS | {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": CHAT_TOKENS}
        requests = self._chats.requests(1200)
        job = Job(self.server.opsin.port, str(requests), STREAMS, fields, 1200, pause=PAUSE, stop=str(stop))
        answers: list[dict[str, Any]] = []
        client = threading.Thread(target=lambda: answers.append(load(job, self.server.opsin.child)))
        client.start()
        time.sleep(3.0)  # it reads its requests
        steps, before = self._step_seconds(), self.server.opsin.child.cpu_seconds()
        meter, began = machine.Meter(), time.perf_counter()
        try:
            yield found
        finally:
            ended, steps = time.perf_counter(), self._step_seconds() - steps
            after, ours = self.server.opsin.child.cpu_seconds(), meter.read()
            stop.touch()
            client.join()
        used = sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())
        of_client = answers[0]["client_cpu_seconds"] / answers[0]["wall_seconds"]
        others = (ours["machine_cpu_seconds"] - ours["cpu_seconds"] - used) / (ended - began) - of_client
        found.append(_seen(answers[0]["answers"], began, ended, steps / (ended - began), max(0.0, others)))

    def _step_seconds(self) -> float:
        parts = self.server.opsin.engine_seconds()
        return sum(seconds for part, seconds in parts.items() if not part.endswith(".steps"))

    def _input(self) -> Path:
        path = self._folder / "batch.jsonl"
        with path.open("w") as file, self._lines.requests(self._pictures).open() as requests:
            for number, line in enumerate(requests):
                body = FIELDS | {"max_tokens": LINE_TOKENS, "messages": json.loads(line)}
                file.write(
                    json.dumps({"custom_id": f"{number}", "method": "POST", "url": ENDPOINT, "body": body}) + "\n"
                )
        return path


def _until_asked_again(done: float, seconds: float) -> float:
    """Half of the time that it will take by what was done in so many seconds. To ask ten times a second takes time of
    the API process that would be put down to the batch."""
    return min(5.0, max(0.1, 0.5 * seconds * (1 - done) / done)) if done else 0.1


def _seen(answers: list[dict[str, Any]], began: float, ended: float, *shares: float) -> Chats:
    if errors := [answer["error"] for answer in answers if answer["error"]]:
        raise BenchError(errors[0])
    inside = [answer for answer in answers if began <= answer["start"] and answer["end"] <= ended]
    gaps = [
        1e3 * (after - before)
        for answer in inside
        for before, after in zip(answer["arrivals"], answer["arrivals"][1:], strict=False)
    ]
    return Chats(
        [1e3 * (answer["first"] - answer["start"]) for answer in inside], gaps, _busy(answers, began, ended), *shares
    )


def _busy(answers: list[dict[str, Any]], began: float, ended: float) -> float:
    """Share of the time in which at least one was under way."""
    seconds, last = 0.0, began
    for answer in sorted(answers, key=lambda answer: answer["start"]):
        start, end = max(answer["start"], last), min(answer["end"], ended)
        seconds += max(0.0, end - start)
        last = max(last, end)
    return seconds / (ended - began)


def run(pictures: int, rounds: int, seconds: float) -> tuple[dict[str, Any], str]:
    began, described = datetime.now(UTC), machine.describe()
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        bench = Bench(Path(name), pictures)
        try:
            bench.chats(5.0)
            found = []
            for _ in range(rounds):
                chats, alone = bench.chats(seconds), bench.batch()
                found.append(Round(chats, *bench.both(), alone))
        finally:
            bench.server.opsin.child.stop()
    document = report.header("batches", began, described) | {"rounds": [_kept(one) for one in found]}
    return document, text(document, found, pictures)


def _kept(one: Round) -> dict[str, Any]:
    """Of tens of thousands of gaps how many there were, and percentiles."""
    found = asdict(one)
    for chats in (found["chats"], found["beside"]):
        for name in ("first", "gaps"):
            shown = {str(percent): round(percentile(chats[name], percent), 4) for percent in PERCENTILES}
            chats[name] = {"count": len(chats[name]), "percentiles": shown}
    return found


def text(document: dict[str, Any], rounds: list[Round], pictures: int) -> str:
    rows = []
    for number, one in enumerate(rounds, 1):
        rows.append([str(number), "chats alone", *one.chats.row(), "-"])
        rows.append([str(number), "batch alone", *["-"] * 8, short(one.batch_seconds)])
        rows.append([str(number), "both", *one.beside.row(), short(one.beside_seconds)])
    titles = [
        "round",
        "",
        "gap p50",
        "gap p99",
        "first p50",
        "first p99",
        "gaps",
        "busy",
        "engine",
        "others",
        "batch, s",
    ]
    gaps, times = Spread.of(r.gap_ratio for r in rounds), Spread.of(r.time_ratio for r in rounds)
    verdict = {True: "met", False: "missed"}
    aims = (
        ("p99 gap beside the batch, over that alone", gaps, GAP_RATIO),
        ("batch beside chats, over what the idle share allows", times, TIME_RATIO),
    )
    shown = [[what, str(ratio), str(most), verdict[ratio.median <= most]] for what, ratio, most in aims]
    targets = report.table(["", "median (min-max)", "at most", ""], shown)
    notes = (
        f"opsin-mini, one thread. A batch of {pictures:,} fresh 224 x 224 pictures with {LINE_TOKENS} tokens of answer "
        f"each; {STREAMS} chats with {CHAT_TOKENS}, pauses of {PAUSE:g} s on average between them. Gaps and first "
        "tokens in ms; busy: the share of the time in which a chat was under way; engine: that in the engine's steps; "
        "others: cores that other processes used meanwhile, 0 on a quiet machine."
    )
    title = f"# Batches beside chats: {document['machine']['kind']}"
    return "\n\n".join([title, report.about(document), report.table(titles, rows), targets, notes]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="200 pictures, one round")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    pictures, rounds, seconds = (200, 1, 10.0) if given.quick else (given.pictures, given.rounds, ALONE_SECONDS)
    try:
        with ended_by_signals():
            document, shown = run(pictures, rounds, seconds)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    report.write(document, given.out or report.default_path("batches", given.quick), shown)


if __name__ == "__main__":
    main()
