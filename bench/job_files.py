"""What large training files cost a server: memory while they are uploaded and checked whole by a job, and the time of
chats meanwhile.

python bench/job_files.py            20,000 rows with small pictures, 600 MB in parts, 8 rounds of chats; 8 minutes
python bench/job_files.py --quick    4,000 rows, 60 MB, 2 rounds; a minute
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import models
import numpy as np
import report
from PIL import Image
from processes import BenchError, Threads, ended_by_signals
from stats import Spread, percentile, short
from systems import Opsin

MIB = 2**20
PART = 64 * MIB
SMALL, LARGE = 24, 150  # pixels of a side; a large one is noise, 66 KB as a PNG
SAMPLE_SECONDS = 0.02
CHAT = {"max_tokens": 8, "messages": [{"role": "user", "content": "What is in the picture?"}]}
GROWTH_MIB, RATIO = 100.0, 1.2  # targets
OVER = ("queued", "running", "succeeded", "failed", "cancelled")


class Server:
    """What is asked of one, on a connection that stays open."""

    def __init__(self, folder: Path) -> None:
        self.opsin = Opsin(models.prepare("mini", folder), Threads(1, "passive"), folder)
        self.opsin.wait_ready()
        self.pid = self.opsin.child.pid
        self._connection = http.client.HTTPConnection("127.0.0.1", self.opsin.port, timeout=600)

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> dict[str, Any]:
        self._connection.request(method, f"/v1{path}", body, {"content-type": kind} if body else {})
        answer = self._connection.getresponse()
        found = json.loads(answer.read())
        if answer.status != 200:
            raise BenchError(f"{method} {path}: {found}")
        return found

    def post(self, path: str, **fields: object) -> dict[str, Any]:
        return self.ask("POST", path, json.dumps(fields).encode())

    def upload(self, path: Path, purpose: str = "fine-tune") -> str:
        """In parts, one after the other."""
        made = self.post(
            "/uploads", purpose=purpose, filename="rows.jsonl", bytes=path.stat().st_size, mime_type="text/jsonl"
        )
        parts = []
        with path.open("rb") as opened:
            while data := opened.read(PART):
                head = b'--x\r\ncontent-disposition: form-data; name="data"; filename="part"\r\n\r\n'
                kind = "multipart/form-data; boundary=x"
                answer = self.ask("POST", f"/uploads/{made['id']}/parts", head + data + b"\r\n--x--\r\n", kind)
                parts.append(answer["id"])
        return str(self.post(f"/uploads/{made['id']}/complete", part_ids=parts)["file"]["id"])

    def begin(self, file: str, seed: int) -> str:
        job = self.post("/fine_tuning/jobs", model="measured", training_file=file, seed=seed)
        return str(job["id"])

    def status(self, job: str) -> str:
        found = self.ask("GET", f"/fine_tuning/jobs/{job}")
        if found["status"] == "failed":
            raise BenchError(str(found["error"]))
        return str(found["status"])

    def cancel(self, job: str) -> None:
        self.post(f"/fine_tuning/jobs/{job}/cancel")


@dataclass
class Memory:
    """Of the API process, and of it with all that descends from it: bytes before, and the most meanwhile."""

    before: tuple[int, int] = (0, 0)
    most: tuple[int, int] = (0, 0)
    anonymous: tuple[int, int] = (0, 0)  # of the API process, what is no file: before, and the most
    seconds: float = 0.0

    @property
    def growth(self) -> list[float]:
        pairs = (*zip(self.before, self.most, strict=True), self.anonymous)
        return [(most - before) / MIB for before, most in pairs]


@dataclass
class Watch:
    """Samples a process while the block runs."""

    pid: int
    memory: Memory = field(default_factory=Memory)

    def __enter__(self) -> Memory:
        self._over, self._began = threading.Event(), time.perf_counter()
        self._thread = threading.Thread(target=self._run)
        first = self._look()
        self.memory.before, self.memory.anonymous = first[:2], (first[2], first[2])
        self._thread.start()
        return self.memory

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.memory.seconds = time.perf_counter() - self._began

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            found = self._look()
            self.memory.most = tuple(map(max, self.memory.most, found[:2]))  # type: ignore[assignment]
            self.memory.anonymous = (self.memory.anonymous[0], max(self.memory.anonymous[1], found[2]))

    def _look(self) -> tuple[int, int, int]:
        family = list(machine.tree_cpu_seconds(self.pid))
        return resident(self.pid), sum(map(resident, family)), resident(self.pid, "RssAnon")


def resident(pid: int, name: str = "VmRSS") -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:  # it has just ended
        return 0
    return 1024 * int(found[1]) if found else 0


def write_rows(path: Path, side: int, count: int, most_bytes: int | None = None) -> None:
    """Each with a picture of its own. most_bytes: of the file, where that ends it."""
    chance = np.random.default_rng(side)
    with path.open("wb") as out:
        for number in range(count):
            picture = io.BytesIO()
            Image.fromarray(chance.integers(0, 256, (side, side, 3), np.uint8)).save(picture, "PNG", compress_level=1)
            url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
            content = [{"type": "text", "text": f"{number}?"}, {"type": "image_url", "image_url": {"url": url}}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": f"It is {number}."}]
            out.write(json.dumps({"messages": messages}).encode() + b"\n")
            if most_bytes is not None and out.tell() >= most_bytes:
                return


def checked(server: Server, file: str, seed: int) -> None:
    """Until the job's files are validated; it is not trained."""
    job = server.begin(file, seed)
    while server.status(job) not in OVER:
        time.sleep(0.1)
    server.cancel(job)


def memory_of(server: Server, path: Path, seed: int) -> dict[str, Any]:
    time.sleep(2.0)
    with Watch(server.pid) as upload:
        file = server.upload(path)
    time.sleep(2.0)
    with Watch(server.pid) as check:
        checked(server, file, seed)
    return {"file": file, "bytes": path.stat().st_size, "upload": asdict(upload) | {"growth_mib": upload.growth},
            "check": asdict(check) | {"growth_mib": check.growth}}  # fmt: skip


def chats(server: Server, goes_on: Callable[[float], bool]) -> list[float]:
    """ms of each of a stream of chats that ask again when they are answered."""
    out, began = [], time.perf_counter()
    while goes_on(time.perf_counter() - began):
        start = time.perf_counter()
        server.post("/chat/completions", model="measured", temperature=0, ignore_eos=True, **CHAT)
        out.append(1e3 * (time.perf_counter() - start))
    return out


def rounds(server: Server, folder: Path, file: str, count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Chats without, and beside the check of a file, in turn and in changing order."""
    other = Server.__new__(Server)  # a second connection, for the job
    other._connection = http.client.HTTPConnection("127.0.0.1", server.opsin.port, timeout=600)
    for number in range(count):
        found: dict[str, Any] = {}
        meter = machine.Meter()
        for what in ("alone", "beside")[:: 1 if number % 2 else -1]:
            if what == "alone":
                found[what] = chats(server, lambda passed: passed < seconds)
                continue
            job = other.begin(file, 1000 + number)
            time.sleep(0.5)
            found[what] = chats(server, lambda passed: passed < seconds)
            if other.status(job) != "validating_files":
                raise BenchError("the file was checked before the chats had ended: give more rows")
            other.cancel(job)
            time.sleep(2.0)  # the run ends at its next row
        yield found | {"machine": meter.read()}


def run(quick: bool) -> dict[str, Any]:
    rows, size, count, seconds = (4_000, 60 * 10**6, 2, 4.0) if quick else (20_000, 600 * 10**6, 8, 12.0)
    began, described = datetime.now(UTC), machine.describe()
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        folder = Path(name)
        small, large = folder / "small.jsonl", folder / "large.jsonl"
        write_rows(small, SMALL, rows)
        write_rows(large, LARGE, 10**6, size)
        server = Server(folder)
        try:
            chats(server, lambda passed: passed < 3.0)
            memory = {"rows": memory_of(server, small, 1), "bytes": memory_of(server, large, 2)}
            measured = list(rounds(server, folder, memory["rows"]["file"], count, seconds))
        finally:
            server.opsin.child.stop()
    ratios = {p: [percentile(one["beside"], p) / percentile(one["alone"], p) for one in measured] for p in (50, 99)}
    shares = {
        what: {f"p{p}": asdict(Spread.of(percentile(one[what], p) for one in measured)) for p in (50, 99)}
        for what in ("alone", "beside")
    }
    return report.header("job-files", began, described) | {
        "rows": rows,
        "memory": memory,
        "rounds": [{what: one[what] for what in ("alone", "beside")} | one["machine"] for one in measured],
        "chats_ms": shares,
        "ratio": {f"p{p}": asdict(Spread.of(found)) for p, found in ratios.items()},
        "pooled": {
            f"p{p}": percentile([ms for one in measured for ms in one["beside"]], p)
            / percentile([ms for one in measured for ms in one["alone"]], p)
            for p in (50, 99)
        },
    }


def text(document: dict[str, Any]) -> str:
    rows = []
    for what, title in (("rows", f"{document['rows']:,} rows, small pictures"), ("bytes", "large pictures, in parts")):
        found = document["memory"][what]
        for part in ("upload", "check"):
            grown = found[part]["growth_mib"]
            verdict = "met" if grown[0] <= GROWTH_MIB else "missed"
            shown = [short(value) for value in grown]
            rows.append(
                [
                    title,
                    f"{found['bytes'] / 1e6:,.0f}",
                    part,
                    short(found[part]["seconds"]),
                    *shown,
                    GROWTH_MIB,
                    verdict,
                ]
            )
    titles = ["file", "MB", "", "s", "API process, MiB", "all processes", "without files", "target", ""]
    chat_rows = [
        [p, *(str(Spread(**document["chats_ms"][what][p])) for what in ("alone", "beside")),
         str(Spread(**document["ratio"][p])), short(document["pooled"][p]), *target(p, document)]
        for p in ("p50", "p99")
    ]  # fmt: skip
    chat_titles = ["", "alone, ms", "beside, ms", "ratio by round", "of all rounds", "target", ""]
    used = Spread.of(one["machine_cpu_seconds"] / one["wall_seconds"] for one in document["rounds"])
    notes = (
        "Growth of resident memory above what there was before, at most, sampled every 20 ms. A check is a job's, from "
        "its creation until its files are validated; every row has a picture of its own. Chats: text, 8 tokens, one "
        "stream, while the file of small pictures is checked; rounds without and beside in turn, median (min-max). "
        f"Meanwhile {used} of the machine's {document['machine']['cores']} cores were used, by all."
    )
    return "\n\n".join(
        [
            f"# Training files of jobs: {document['machine']['kind']}",
            report.about(document),
            "`python bench/job_files.py`",
            report.table(titles, rows),
            report.table(chat_titles, chat_rows),
            notes,
        ]
    ) + "\n"  # fmt: skip


def target(p: str, document: dict[str, Any]) -> list[str]:
    if p != "p99":
        return ["", ""]
    return [str(RATIO), "met" if document["ratio"][p]["median"] <= RATIO else "missed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="a .json; default: docs/benchmarks")
    given = parser.parse_args()
    try:
        with ended_by_signals():
            document = run(given.quick)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    report.write(document, given.out or report.default_path("job-files", given.quick), text(document))


if __name__ == "__main__":
    main()
