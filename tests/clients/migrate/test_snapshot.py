"""Snapshots of accounts that may be anybody's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from opsin_client.migrate import pictures, source
from opsin_client.migrate.folder import SnapshotFolder
from opsin_client.migrate.pace import MOST_TRIES, Pace, asked_seconds
from opsin_client.migrate.pictures import NoPictureError, fetch_picture
from opsin_client.migrate.problems import MigrateError
from opsin_client.migrate.progress import Bars
from opsin_client.migrate.snapshot import Counts, Snapshot, Wanted
from opsin_client.migrate.source import Source
from support.fake_source import FakeSource, Handler, fake_source
from support.media_host import MediaHost, drip, flood, ok, redirect

NOWHERE = "http://127.0.0.1:1/v1"


class Interrupted(BaseException):
    """The process ends here."""


def row(text: str, url: str | None = None) -> dict[str, Any]:
    asked = [{"type": "text", "text": text}]
    if url is not None:
        asked.append({"type": "image_url", "image_url": {"url": url}})  # type: ignore[dict-item]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "yes"}]}


def take(
    account: FakeSource,
    folder: Path,
    wanted: Wanted | None = None,
    most: int = 2**30,
    sleep: Callable[[float], None] = lambda seconds: None,
) -> Counts:
    api = Source(account.url, "key", Pace(sleep))
    try:
        with Bars() as bars:
            snapshot = Snapshot(api, SnapshotFolder(folder, most), wanted or Wanted(allow_hosts=("127.0.0.1",)), bars)
            snapshot.take()
            return snapshot.counts
    finally:
        api.close()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def an_account(account: FakeSource, host: MediaHost) -> None:
    for name in ("ftjob-a", "ftjob-b", "ftjob-c"):
        account.add_job(name, [row(f"{name} {n}", host.url("/a.png") if n == 1 else None) for n in range(4)])


def test_all_of_an_account_is_saved(account: FakeSource, host: MediaHost, tmp_path: Path) -> None:
    an_account(account, host)
    counts = take(account, tmp_path / "s")
    assert counts == Counts(jobs=3, files=3, pictures=1, lost_pictures=0, answers=12)
    saved = tree(tmp_path / "s")
    assert saved["files/file-ftjob-a/content"] == account.answers["files/file-ftjob-a/content"]
    assert len(saved["jobs/ftjob-b/events.jsonl"].splitlines()) == 5  # three pages
    assert json.loads(saved["jobs/ftjob-c/answers.jsonl"].splitlines()[3]) == {
        "answer": "an old answer", "file": "file-ftjob-c", "line": 4, "seen": True,
    }  # fmt: skip
    asked = len(account.log)
    assert take(account, tmp_path / "s") == counts
    assert len(account.log) == asked + 2  # the pages of jobs, in which there might be a new one
    assert tree(tmp_path / "s") == saved


def test_an_interrupted_snapshot_goes_on_to_the_same_directory(
    account: FakeSource, host: MediaHost, tmp_path: Path
) -> None:
    """At every request, the answer breaks off and the process ends before it asks again."""
    an_account(account, host)
    take(account, tmp_path / "whole")
    whole, requests = tree(tmp_path / "whole"), len(account.log)
    assert requests > 20

    def end(seconds: float) -> None:
        raise Interrupted

    for place in range(1, requests + 1):
        folder = tmp_path / str(place)
        account.log.clear()
        account.breaks_at = place
        with pytest.raises(Interrupted):
            take(account, folder, sleep=end)
        account.breaks_at = 0
        take(account, folder)
        assert tree(folder) == whole, place


def test_a_killed_snapshot_goes_on_to_the_same_directory(account: FakeSource, host: MediaHost, tmp_path: Path) -> None:
    an_account(account, host)
    take(account, tmp_path / "whole")

    def slow(handler: Handler) -> None:
        time.sleep(0.05)
        handler.send(200, json.dumps({"choices": [{"message": {"content": "an old answer"}}]}).encode())

    account.answers["chat/completions"] = slow
    folder = tmp_path / "killed"
    words = ["migrate", "snapshot", "--out", str(folder), "--from", account.url, "--allow-host", "127.0.0.1"]
    command = [sys.executable, "-c", "from opsin_server.cli import main; main()", *words]
    for asked in (3, 9):
        answers_before = sum(line.startswith("POST") for line in account.log)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            end = time.monotonic() + 60
            while sum(line.startswith("POST") for line in account.log) < answers_before + asked:
                assert time.monotonic() < end
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
    take(account, folder)
    assert tree(tmp_path / "whole") == tree(folder)


def test_a_line_that_was_cut_short_is_asked_for_again(account: FakeSource, host: MediaHost, tmp_path: Path) -> None:
    an_account(account, host)
    take(account, tmp_path / "s")
    whole = tree(tmp_path / "s")
    path = tmp_path / "s" / "jobs" / "ftjob-a" / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    take(account, tmp_path / "s")
    assert tree(tmp_path / "s") == whole


# ------------------------------------------------------------------------------------------------ hostile sources


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "x" * 200, 7, None])
def test_no_id_becomes_a_path(account: FakeSource, host: MediaHost, tmp_path: Path, name: Any) -> None:
    an_account(account, host)
    jobs: list[dict[str, Any]] = account.answers["fine_tuning/jobs"]  # type: ignore[assignment]
    jobs.append({**jobs[0], "id": "ftjob-files", "training_file": name, "result_files": [name]})
    if isinstance(name, str):
        jobs.insert(0, {**jobs[0], "id": name})
    account.answers["fine_tuning/jobs/ftjob-files/events"] = []
    account.answers["fine_tuning/jobs/ftjob-files/checkpoints"] = []
    counts = take(account, tmp_path / "deep" / "s")
    assert counts.jobs == 4
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["s"]
    assert {path.name for path in (tmp_path / "deep" / "s" / "jobs").iterdir()} == {
        "ftjob-a", "ftjob-b", "ftjob-c", "ftjob-files",
    }  # fmt: skip


def test_a_redirect_is_not_followed_with_the_key(account: FakeSource, host: MediaHost, tmp_path: Path) -> None:
    an_account(account, host)
    account.answers["files/file-ftjob-a/content"] = lambda handler: handler.send(302, b"", location=host.url("/key"))
    with pytest.raises(MigrateError, match="redirects"):
        take(account, tmp_path / "s")
    assert "/key" not in host.asked


@pytest.mark.parametrize("fresh", [True, False])
def test_a_list_without_end_ends(
    account: FakeSource, host: MediaHost, tmp_path: Path, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOST_ITEMS", 50)
    an_account(account, host)

    def endless(handler: Handler) -> None:
        count = len(account.log) if fresh else 0
        handler.send(200, json.dumps({"data": [{"id": f"ev{count}"}], "has_more": True}).encode())

    account.answers["fine_tuning/jobs/ftjob-a/events"] = endless
    assert take(account, tmp_path / "s").jobs == 3


def test_a_file_without_end_is_left_out(account: FakeSource, host: MediaHost, tmp_path: Path) -> None:
    an_account(account, host)
    account.answers["files/file-ftjob-a/content"] = Handler.send_without_end
    counts = take(account, tmp_path / "s", Wanted(most_file=2**20, allow_hosts=("127.0.0.1",)))
    assert (counts.jobs, counts.files, counts.answers) == (3, 2, 8)
    assert sum(map(len, tree(tmp_path / "s").values())) < 2**20


def test_the_directory_has_a_limit(account: FakeSource, host: MediaHost, tmp_path: Path) -> None:
    an_account(account, host)
    account.answers["files/file-ftjob-b/content"] = Handler.send_without_end
    with pytest.raises(MigrateError, match="--max-total"):
        take(account, tmp_path / "s", most=2**20)
    assert sum(map(len, tree(tmp_path / "s").values())) < 2**20


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: handler.send_without_end(),
        lambda handler: handler.send(200, b"[" * 100_000),
        b"not JSON",
        b"[]",
        {"data": "many"},
        {"data": [1]},
        lambda handler: handler.send(200, b"\x1f\x8b", content_encoding="gzip"),
    ],
)
def test_what_is_no_list_of_jobs_is_a_sentence(
    account: FakeSource, tmp_path: Path, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOST_JSON", 2**20)
    account.answers["fine_tuning/jobs"] = answer
    if callable(answer) and answer.__code__.co_names == ("send_without_end",):
        assert take(account, tmp_path / "s").jobs == 0  # noted, and left out
        return
    with pytest.raises(MigrateError):
        take(account, tmp_path / "s")


def test_a_source_is_asked_again_when_it_says(account: FakeSource, host: MediaHost, tmp_path: Path) -> None:
    an_account(account, host)
    good: Any = account.answers["files/file-ftjob-a"]
    left, slept = [3], []

    def busy(handler: Handler) -> None:
        left[0] -= 1
        if left[0] >= 0:
            handler.send(429, b"{}", retry_after="7")
        else:
            handler.send(200, json.dumps(good).encode())

    account.answers["files/file-ftjob-a"] = busy
    take(account, tmp_path / "s", sleep=slept.append)
    assert slept == [7, 7, 7]


def test_a_source_that_never_answers_ends_the_command(account: FakeSource, tmp_path: Path) -> None:
    account.answers["fine_tuning/jobs"] = lambda handler: handler.send(503, b"")
    slept: list[float] = []
    with pytest.raises(MigrateError, match="HTTP 503"):
        take(account, tmp_path / "s", sleep=slept.append)
    assert len(slept) == MOST_TRIES - 1
    assert all(later > 0.9 * sooner for sooner, later in pairwise(slept))


def test_an_address_where_nothing_listens_is_given_up_soon() -> None:
    slept: list[float] = []
    api = Source(NOWHERE, "key", Pace(slept.append))
    with pytest.raises(MigrateError, match="does not answer"):
        api.object("fine_tuning/jobs/a")
    api.close()
    assert 3 < sum(slept) < 10


def test_a_source_that_has_answered_once_is_waited_for(account: FakeSource) -> None:
    slept: list[float] = []
    account.answers["files/a"] = {"id": "a"}
    api = Source(account.url, "key", Pace(slept.append))
    assert api.object("files/a") == {"id": "a"}
    api.url = NOWHERE
    with pytest.raises(MigrateError, match="does not answer"):
        api.object("files/a")
    api.close()
    assert len(slept) == MOST_TRIES - 1


@pytest.mark.parametrize("url", ["", " ", "ftp://127.0.0.1/v1", "https://", "http:///v1", "http://[::1", "file:///x"])
def test_what_is_no_address_is_a_sentence(url: str) -> None:
    with pytest.raises(MigrateError, match="--from"):
        Source(url, "key")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "1e9"}, 600),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({}, None),
    ],
)
def test_how_long_a_source_wants_to_be_left(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_seconds(headers) == seconds


def test_the_snapshot_of_another_source_is_left_alone(account: FakeSource, host: MediaHost, tmp_path: Path) -> None:
    an_account(account, host)
    take(account, tmp_path / "s")
    with fake_source() as other, pytest.raises(MigrateError, match="holds a snapshot of"):
        take(other, tmp_path / "s")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(MigrateError, match="holds no snapshot"):
        take(account, tmp_path / "mine")


# ------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/text", ok(b"<html>", "image/png")),
        ("/none", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        ("/round", redirect("/round")),
        ("/file", redirect("file:///etc/passwd")),
        ("/flood", flood),
    ],
)
def test_what_is_no_picture_is_none(host: MediaHost, path: str, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 2**20)
    host.answers[path] = answer
    with pytest.raises(NoPictureError):
        fetch_picture(host.url(path), ("127.0.0.1",))


def test_a_picture_that_takes_for_ever_is_none(host: MediaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SECONDS", 0.5)
    host.answers["/drip"] = drip
    with pytest.raises(NoPictureError):
        fetch_picture(host.url("/drip"), ("127.0.0.1",))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a.png",
        "http://localhost:{port}/a.png",
        "http://[::ffff:127.0.0.1]:{port}/a.png",
        "http://2130706433:{port}/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "ftp://example.com/",
        "http://",
    ],
)
def test_no_picture_comes_from_inside(host: MediaHost, url: str) -> None:
    with pytest.raises(NoPictureError):
        fetch_picture(url.format(port=host.port))
    assert host.asked == []


def test_a_redirect_inside_is_not_followed(host: MediaHost) -> None:
    """The first host is allowed, and sends on to one that is not."""
    host.answers["/on"] = redirect(f"http://inside.example:{host.port}/a.png")
    names = {"outside.example": ("127.0.0.1",), "inside.example": ("127.0.0.1",)}
    with pytest.raises(NoPictureError, match="not public"):
        fetch_picture(
            f"http://outside.example:{host.port}/on", ("outside.example",), lambda name, port: names.get(name, ())
        )
    assert host.asked == ["/on"]


def test_a_picture_that_was_lost_is_counted(account: FakeSource, host: MediaHost, png: bytes, tmp_path: Path) -> None:
    account.add_job("ftjob-a", [row("x", host.url("/a.png")), row("y", host.url("/gone.png"))])
    counts = take(account, tmp_path / "s")
    assert (counts.pictures, counts.lost_pictures) == (1, 1)
    host.answers["/gone.png"] = ok(png + b"other")
    assert take(account, tmp_path / "s").lost_pictures == 0
