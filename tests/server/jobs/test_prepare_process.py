"""A file that a server prepares in a process of its own: as in its own process, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest
from PIL import Image

from opsin_server.config import EngineConfig
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.options import DataOptions
from opsin_server.jobs.prepare import DataRefused, Source, ValidationRefused, prepare
from opsin_server.jobs.prepare_messages import PrepareFile
from opsin_server.jobs.prepare_process import WORKER, prepare_apart
from opsin_server.jobs.prepare_worker import NICEST
from opsin_server.media_limits import MediaLimits
from opsin_server.text.encode_prompt import PromptEncoder
from support import talk

Write = Callable[..., Path]


@pytest.fixture
def source(encoder: PromptEncoder) -> Source:
    return Source(encoder, DataOptions(min_rows=1), version="7", config=EngineConfig(str(talk.MINI)), threads=2)


def rows(count: int) -> list[dict[str, object]]:
    return [{"messages": [talk.user(f"{n}"), talk.assistant("yes")]} for n in range(count)]


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if WORKER[1] in child.cmdline()]


def test_it_makes_the_same_and_stands_back(
    source: Source, write: Write, picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    shown = {"messages": [talk.user(picture(3), "what is it?"), talk.assistant("a circle")]}
    file, nice = write(*rows(30), shown), set[int]()
    apart = prepare_apart(file, source, tmp_path / "apart", lambda lines: nice.update(w.nice() for w in workers()))
    whole = prepare(file, source, tmp_path / "alone")
    assert nice == {NICEST}
    assert not workers()
    assert apart.report == whole.report
    assert apart.digest == whole.digest
    assert [apart.row(n).ids.tolist() for n in range(31)] == [whole.row(n).ids.tolist() for n in range(31)]
    again = prepare_apart(file, source, tmp_path / "apart", lambda lines: None)
    assert again.digest == apart.digest


@pytest.mark.parametrize(("role", "kind"), [("training", DataRefused), ("validation", ValidationRefused)])
def test_faults_are_told_with_their_lines(
    role: str, kind: type[DataRefused], source: Source, write: Write, tmp_path: Path
) -> None:
    file = write(*rows(3), {"messages": []}, b"no row")
    with pytest.raises(kind) as wanted:
        prepare(file, replace(source, role=role), tmp_path / "alone")
    with pytest.raises(kind) as found:
        prepare_apart(file, replace(source, role=role), tmp_path / "apart", lambda lines: None)
    assert str(found.value) == str(wanted.value)
    assert found.value.report == wanted.value.report
    assert found.value.code == wanted.value.code
    assert not (tmp_path / "apart").exists()


def test_images_are_asked_of_the_server_by_their_ids(source: Source, write: Write, tmp_path: Path) -> None:
    png = Path(tmp_path / "seen.png")
    Image.new("RGB", (64, 48), "red").save(png)

    def files(file_id: str) -> bytes:
        if file_id != "file-1":
            raise BadRequest(f"there is no file {file_id}", code="invalid_image")
        return png.read_bytes()

    def row(file_id: str) -> dict[str, object]:
        image = {"type": "image_url", "image_url": {"file_id": file_id}}
        question = {"role": "user", "content": [image, {"type": "text", "text": "colour?"}]}
        return {"messages": [question, talk.assistant("red")]}

    with_files = replace(source, files=files)
    apart = prepare_apart(write(*(row("file-1") for _ in range(9))), with_files, tmp_path / "apart", lambda n: None)
    assert apart.report.images == 1
    assert apart.report.image_uses == 9
    with pytest.raises(DataRefused, match=r"line 2: .*there is no file file-2"):
        prepare_apart(write(row("file-1"), row("file-2"), name="b.jsonl"), with_files, tmp_path / "b", lambda n: None)


def test_who_stops_it_leaves_no_process(source: Source, write: Write, tmp_path: Path) -> None:
    def stop(lines: int) -> None:
        assert workers()
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        prepare_apart(write(*rows(50)), source, tmp_path / "out", stop)
    assert not workers()


def test_who_waits_for_no_answer_is_stopped_and_has_what_was_read(source: Source, write: Write, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/picture.png"
        image = {"type": "image_url", "image_url": {"url": url}}
        lost = {"messages": [{"role": "user", "content": [image]}, talk.assistant("yes")]}
        file, told = write(*rows(3), lost, lost), list[int]()
        slow = replace(source, media=MediaLimits(allow=("127.0.0.1",), fetch_timeout=600.0))
        brief = replace(slow, limits=DataLimits(max_seconds=2.0))
        made = prepare_apart(file, brief, tmp_path / "brief", told.append)
        assert (made.report.unread_from, made.report.rows, made.report.fault_count, told[-1]) == (4, 3, 0, 3)
        assert told.count(3) > 2

        def stop(lines: int) -> None:
            if lines == 3:
                raise KeyError("stopped")

        with pytest.raises(KeyError, match="stopped"):
            prepare_apart(file, slow, tmp_path / "stopped", stop)
    assert not workers()


def test_a_process_that_dies_is_told(source: Source, write: Write, tmp_path: Path) -> None:
    def kill(lines: int) -> None:
        for worker in workers():
            worker.send_signal(signal.SIGKILL)

    with pytest.raises(OpsinError, match=r"ended \(signal 9\); is there enough memory"):
        prepare_apart(write(*rows(3000)), source, tmp_path / "out", kill)


def test_faults_of_the_machine_stay_what_they_are(source: Source, write: Write, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        prepare_apart(write(*rows(3)), source, tmp_path / "taken" / "out", lambda lines: None)
    gone = replace(source, config=EngineConfig(str(tmp_path / "nothing")))
    with pytest.raises(OpsinError, match="nothing"):
        prepare_apart(write(*rows(3)), gone, tmp_path / "out", lambda lines: None)


def test_it_ends_with_the_server(source: Source, write: Write, tmp_path: Path) -> None:
    assert source.config is not None
    read, written = os.pipe()  # a named file would end; a stream that nobody writes to does not
    asked = PrepareFile(
        source.config, f"/dev/fd/{read}", str(tmp_path / "out"), source.options, "", None, source.media, source.limits,
        "training", 1,
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, *WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(read,)
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(asked) + b"\n")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.stdin.close()
    assert process.wait(60) == 1
    assert process.stdout is not None
    process.stdout.close()
    os.close(read)
    os.close(written)
