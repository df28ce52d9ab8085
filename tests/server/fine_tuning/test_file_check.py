"""A training file looked at before there is a job: bounded, one at a time, and ended with whoever asked."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from opsin_server.config import EngineConfig
from opsin_server.errors import Unavailable
from opsin_server.fine_tuning import file_check
from opsin_server.fine_tuning.file_check import FileCheck, FileChecks
from opsin_server.fine_tuning.job_options import JobOptions
from opsin_server.jobs import prepare as prepare_module
from opsin_server.jobs.options import DataOptions
from opsin_server.jobs.prepare import Source, prepare
from opsin_server.jobs.prepared import Prepared
from opsin_server.text.encode_prompt import PromptEncoder, read_encoder
from support import talk

CIRCLE = talk.sample("red_circle.png")


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return read_encoder(EngineConfig(str(talk.MINI)))


def row(*parts: Any, answer: str = "yes", **more: Any) -> bytes:
    return json.dumps({"messages": [talk.user(*parts), {**talk.assistant(answer), **more}]}).encode()


def place(encoder: PromptEncoder, tmp: Path, data: bytes, work: Callable[..., Prepared] = prepare) -> Any:
    return SimpleNamespace(
        tenant="t",
        state=SimpleNamespace(
            blobs=SimpleNamespace(open=lambda tenant, digest: io.BytesIO(data)), directory=SimpleNamespace(tmp=tmp)
        ),
        source=lambda options: Source(encoder, options.data),
        prepare=work,
    )


def check(where: Any, lines: int = 200, rows: int = 20, **options: Any) -> FileCheck:
    data = JobOptions(data=DataOptions(**options))
    return asyncio.run(FileChecks().check(where, ("file-1", "digest"), data, lines, rows))


def test_rows_with_their_pictures_and_what_is_learned(encoder: PromptEncoder, tmp_path: Path) -> None:
    turns = [talk.user(CIRCLE, "?"), {**talk.assistant("no"), "weight": 0}, talk.user("so?"), talk.assistant("a ball")]
    data = b"\n".join(
        [row(CIRCLE, "what?", answer="<img> é<|im_end|>"), json.dumps({"messages": turns}).encode(), b"{", b""]
    )
    found = check(place(encoder, tmp_path, data))
    assert (found.lines, found.complete) == (3, True)
    assert found.refusal is not None
    assert found.refusal.startswith("the training file is refused: line 3: ")
    assert [(fault.line, bool(fault.message)) for fault in found.report.faults] == [(3, True)]
    assert [shown.line for shown in found.rows] == [1, 2]
    for shown, learned in zip(found.rows, ("<img> é<|im_end|>", "a ball"), strict=True):
        said, end = (run for run in shown.runs if run.learned)
        assert (said.text, said.special, end.text, end.special) == (learned, False, "<|im_end|>", True)
        (picture,) = [run.picture for run in shown.runs if run.picture is not None]
        assert picture.url is not None
        assert picture.url.startswith("data:image/webp;base64,")
        assert 0 < shown.learned < shown.tokens - picture.tokens
    assert not list(tmp_path.iterdir())


def test_a_preference_is_two_rows(encoder: PromptEncoder, tmp_path: Path) -> None:
    pair = {"input": {"messages": [talk.user("q")]}}
    pair |= {"preferred_output": [talk.assistant("good")], "non_preferred_output": [talk.assistant("bad")]}
    found = check(place(encoder, tmp_path, json.dumps(pair).encode()), min_rows=1)
    assert found.refusal is None
    shown = [(row.line, row.part, [run.text for run in row.runs if run.learned]) for row in found.rows]
    assert shown == [(1, "preferred", ["good", "<|im_end|>"]), (1, "non_preferred", ["bad", "<|im_end|>"])]


def test_no_more_than_the_first_lines_are_read(
    encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"\n".join([row(f"{number}?") for number in range(30)])
    few = check(place(encoder, tmp_path, data), lines=5, rows=2)
    assert (few.lines, few.complete, few.report.rows, len(few.rows), few.refusal) == (5, False, 5, 2, None)
    every = check(place(encoder, tmp_path, data), lines=30)
    assert (every.lines, every.complete, every.refusal) == (30, True, None)
    monkeypatch.setattr(file_check, "MOST_BYTES", 3 * len(row("10?")))
    small = check(place(encoder, tmp_path, data))
    assert (small.lines, small.complete, small.report.rows) == (3, False, 3)
    assert check(place(encoder, tmp_path, b"\x1f\x8b" + bytes(90))).refusal is not None
    short = check(place(encoder, tmp_path, row("?")))
    assert short.refusal == "the training file has 1 rows to train on; at least 10 are needed"


def test_a_check_has_its_time_and_others_do_not_wait_for_ever(
    encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, made, taken = threading.Event(), prepare_module._make, []

    def stops(data: bytes, *others: Any) -> Any:
        if b"stop" in data:
            stuck.wait(60)
        row = made(data, *others)
        taken.append(row)
        return row

    def nearly_over_behind_two_rows() -> float:
        return 59.5 if len(taken) == 2 else 0.0

    monkeypatch.setattr(prepare_module, "_make", stops)
    monkeypatch.setattr(prepare_module, "time", SimpleNamespace(monotonic=nearly_over_behind_two_rows))
    monkeypatch.setattr(file_check, "WAIT_SECONDS", 0.05)
    where = place(encoder, tmp_path, b"\n".join([row("1?"), row("2?"), row("stop")]))
    nothing = place(encoder, tmp_path, row("stop"))

    async def both() -> tuple[FileCheck, Exception]:
        checks = FileChecks()
        first = asyncio.create_task(checks.check(where, ("f", "d"), JobOptions(), 9, 9))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as refused:
            await checks.check(where, ("f", "d"), JobOptions(), 9, 9)
        return await first, refused.value

    found, refused = asyncio.run(both())
    assert "one at a time" in str(refused)
    assert (found.lines, found.complete, found.timed_out, found.refusal, len(found.rows)) == (2, False, True, None, 2)
    monkeypatch.setattr(file_check, "LIMITS", msgspec.structs.replace(file_check.LIMITS, max_seconds=0.5))
    empty = check(nothing)
    assert (empty.lines, empty.timed_out, empty.refusal, empty.rows) == (0, True, None, ())
    stuck.set()


def test_one_at_a_time_and_ended_with_whoever_asked(encoder: PromptEncoder, tmp_path: Path) -> None:
    began, most, now = threading.Event(), 0, 0
    ended = []

    def slow(file: Path, source: Source, out: Path, on_row: Callable[[int], None]) -> Prepared:
        nonlocal most, now
        now += 1
        most = max(most, now)
        began.set()
        try:
            for _ in range(2000):
                on_row(0)
                threading.Event().wait(0.005)
            raise AssertionError("it was not ended")
        finally:
            now -= 1
            ended.append(True)

    async def run() -> None:
        checks, where = FileChecks(), place(encoder, tmp_path, row("?"), slow)
        tasks = [asyncio.create_task(checks.check(where, ("f", "d"), JobOptions(), 9, 9)) for _ in range(2)]
        for task in tasks:
            await asyncio.to_thread(began.wait, 60)
            began.clear()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(ended) == 2

    asyncio.run(run())
    assert most == 1
    assert not list(tmp_path.iterdir())
