"""The digest of a served model: found by a thread beside the server, which leaves with it."""

from __future__ import annotations

import json
import logging
import os
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import wait_for

from opsin_plugins.loading import digest_store
from opsin_plugins.loading.content_digest import ContentDigest
from opsin_plugins.loading.files import read_model_files
from opsin_server.api import model_digest
from opsin_server.api.model_digest import ModelDigest

MIB = 2**20


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(digest_store, "SETTLED_NS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "opsin-digest"]


def content(directory: Path, *sizes: int) -> ContentDigest:
    """A model of zeros, a file for each size in bytes, which take no room on the disk."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    for number, size in enumerate(sizes):
        header = {f"x{number}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
        raw = json.dumps(header).encode()
        with (directory / f"{number}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            file.truncate(8 + len(raw) + size)
    return ContentDigest(read_model_files(directory))


def test_it_is_known_after_a_while_and_at_once_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_digest, "RESTS", 0.5)
    one = content(tmp_path / "model", 100 * MIB)
    digest = ModelDigest(one)
    assert digest.value is None
    digest.start()
    wait_for(lambda: digest.value is not None)
    digest.stop()
    assert digest.value == one.known()
    monkeypatch.setattr(model_digest, "RESTS", 1e9)
    again = ModelDigest(ContentDigest(read_model_files(tmp_path / "model")))
    again.start()
    wait_for(lambda: again.value == digest.value)
    again.stop()


def test_little_memory_and_a_part_of_the_time_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = ModelDigest(content(tmp_path / "model", 2**40))
    rest, rests = digest._rest, [0]

    def counted() -> None:
        rests[0] += 1
        rest()

    monkeypatch.setattr(digest, "_rest", counted)
    tracemalloc.start()
    try:
        before, began = time.process_time(), time.monotonic()
        digest.start()
        time.sleep(1.0)
        worked, passed = time.process_time() - before, time.monotonic() - began
        wait_for(lambda: rests[0] > 2)
        digest.stop()
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
    assert 0 < worked < 0.6 * passed


@pytest.mark.parametrize("rests", [0.0, 3.0, 1e9])
def test_it_stops_at_once_and_keeps_the_files_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rests: float
) -> None:
    monkeypatch.setattr(model_digest, "RESTS", rests)
    monkeypatch.setattr(model_digest, "LEAVE_SECONDS", 60.0)
    directory = tmp_path / "model"
    digest = ModelDigest(content(directory, 1, 2**40))
    digest.start()
    if rests < 10:
        wait_for(lambda: (directory / digest_store.NAME).exists())
    start = time.monotonic()
    digest.stop()
    assert time.monotonic() - start < model_digest.LEAVE_SECONDS
    assert digest.value is None
    left = {path.name for path in directory.iterdir()} - {digest_store.NAME}
    assert left == {"config.json", "0.safetensors", "1.safetensors"}


def test_one_that_never_started_stops(tmp_path: Path) -> None:
    ModelDigest(content(tmp_path / "model", 1)).stop()


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_what_cannot_be_hashed_is_told_and_nothing_else_happens(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    digest = ModelDigest(content(tmp_path / "model", 100))
    if how == "gone":
        (tmp_path / "model" / "0.safetensors").unlink()
    else:
        os.truncate(tmp_path / "model" / "0.safetensors", 50)
    digest.start()
    wait_for(lambda: bool(caplog.records))
    digest.stop()
    (record,) = caplog.records
    assert (record.name, record.levelno, digest.value) == ("opsin.launch", logging.WARNING, None)
    assert "0.safetensors" in record.getMessage()
