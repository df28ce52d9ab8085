"""The engine's socket finds a folder that takes it, whatever TMPDIR says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from opsin_server.errors import ConfigError
from opsin_server.ipc.private_folder import bind_privately


@pytest.fixture
def door() -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        yield socket


def set_places(monkeypatch: pytest.MonkeyPatch, temporary: str, runtime: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", temporary)  # what gettempdir has found
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="opsin-test-", dir="/tmp") as folder:
        yield Path(folder)


def too_long(folder: Path) -> str:
    place = folder / ("ö" * 50)  # 107 is a number of bytes
    place.mkdir()
    return str(place)


def no_folder(folder: Path) -> str:
    return str(folder / "nowhere")


def no_utf8(folder: Path) -> str:
    place = folder / os.fsdecode(b"\xff")
    place.mkdir()
    return str(place)


def a_file(folder: Path) -> str:
    (folder / "file").write_text("")
    return str(folder / "file")


@pytest.mark.parametrize("make", [too_long, no_folder, no_utf8, a_file], ids=lambda make: make.__name__)
def test_a_place_that_takes_no_socket_is_passed_over(door, monkeypatch, short, make) -> None:
    set_places(monkeypatch, make(short), str(short))
    folder, address = bind_privately(door)
    assert folder.parent == short
    assert folder.stat().st_mode & 0o777 == 0o700
    assert address == f"ipc://{folder}/engine"
    assert (folder / "engine").is_socket()
    assert not [p for p in short.rglob("opsin-*") if p != folder], "what was tried is removed"


def test_the_temporary_directory_comes_first(door, monkeypatch, short) -> None:
    set_places(monkeypatch, str(short), "/tmp")
    assert bind_privately(door)[0].parent == short


def test_without_any_place_there_is_one_sentence(door, monkeypatch, short) -> None:
    places = [too_long(short), no_folder(short), no_utf8(short)]
    monkeypatch.setattr("opsin_server.ipc.private_folder.places", lambda: places)
    with pytest.raises(ConfigError, match="no temporary directory takes a socket") as refused:
        bind_privately(door)
    said = str(refused.value)
    for words in ("107 are the limit", "No such file or directory", "its path is no UTF-8", "TMPDIR"):
        assert words in said
    assert "\n" not in said
