"""What is kept of a model's digest: it saves reading an untouched file again, and is never believed wrongly."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from opsin_plugins.loading import content_digest, digest_store
from opsin_plugins.loading.content_digest import ContentDigest
from opsin_plugins.loading.digest_store import NAME
from opsin_plugins.loading.files import read_model_files

NOBODY = 65534
FILES = ("a.safetensors", "b.safetensors")


@pytest.fixture(autouse=True)
def _kept_however_small_and_new(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(content_digest, "SMALL_BYTES", 0)
    monkeypatch.setattr(digest_store, "SETTLED_NS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write(tmp_path / "model")


def write(directory: Path) -> Path:
    """Two files of two tensors each."""
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llava"}')
    for number, name in enumerate(FILES):
        save_file({f"{name}.{i}": np.full(100, 2 * number + i, np.float32) for i in (0, 1)}, directory / name)
    return directory


def content(directory: Path) -> ContentDigest:
    return ContentDigest(read_model_files(directory))


def read(directory: Path) -> tuple[str, int]:
    """The digest, and how many tensors were read for it."""
    pieces: list[None] = []
    found = content(directory).compute(lambda: pieces.append(None))
    return found, len(pieces)


def edit(file: Path) -> None:
    """A bit, and the old time of change is given back."""
    time.sleep(0.02)  # past the tick of the file system's clock
    stat = file.stat()
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"\7")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cached(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.json"))


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user whom permissions stop: root reads and writes everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# ----------------------------------------------------------------------------------------------- what is read again


def test_an_untouched_file_is_read_once_and_an_edited_one_again(directory: Path, tmp_path: Path) -> None:
    assert content(directory).known() is None
    first, pieces = read(directory)
    assert pieces == 4
    assert read(directory) == (first, 0)
    assert content(directory).known() == first
    edit(directory / FILES[1])
    assert content(directory).known() is None
    second, pieces = read(directory)
    assert (second == first, pieces) == (False, 2)
    assert content(directory).known() == second
    assert not cached(tmp_path)
    (directory / NAME).unlink()
    assert read(directory) == (second, 4)


def test_another_configuration_costs_no_reading(directory: Path) -> None:
    first, _ = read(directory)
    (directory / "config.json").write_text('{"model_type": "llava", "more": 1}')
    second, pieces = read(directory)
    assert (second == first, pieces) == (False, 0)


def test_a_tensor_that_stands_in_two_files_is_the_one_that_the_index_names(directory: Path) -> None:
    here, there = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    for number, name in enumerate((here, there)):
        save_file({f"own{number}": np.zeros(1), "both": np.full(1, number)}, directory / name)

    def placed(file: str) -> str:
        index = {"weight_map": {"own0": here, "own1": there, "both": file}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        return read(directory)[0]

    first, second = placed(here), placed(there)
    assert first != second
    assert (placed(here), placed(there)) == (first, second)
    (directory / NAME).unlink()
    assert placed(there) == second


def test_what_was_hashed_before_an_end_stays_hashed(directory: Path) -> None:
    class Ended(Exception):
        pass

    pieces: list[None] = []

    def end() -> None:
        pieces.append(None)
        if len(pieces) == 3:
            raise Ended

    with pytest.raises(Ended):
        content(directory).compute(end)
    assert read(directory)[1] == 2


def test_a_copy_with_all_its_times_is_read_again(directory: Path, tmp_path: Path) -> None:
    """Whoever makes an archive can write anything into it."""
    first, _ = read(directory)
    time.sleep(0.02)  # past the tick of the file system's clock
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))  # times too
    assert (copy / NAME).exists()
    assert read(copy) == (first, 4)


def test_what_is_beside_a_model_is_no_part_of_it(directory: Path) -> None:
    before = read_model_files(directory)
    read(directory)
    assert (directory / NAME).exists()
    assert read_model_files(directory) == before


def test_a_moved_model_keeps_what_is_beside_it(directory: Path, tmp_path: Path) -> None:
    first, _ = read(directory)
    assert read(directory.rename(tmp_path / "moved")) == (first, 0)


def test_a_file_that_has_just_changed_is_not_kept(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change again within one tick of a clock, and look as if it had not."""
    monkeypatch.setattr(digest_store, "SETTLED_NS", 60 * 10**9)
    read(directory)
    assert not (directory / NAME).exists()


def test_nothing_is_kept_of_a_small_model(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded one and those of tests: their folders stay as they are, and hashing them takes no time."""
    monkeypatch.setattr(content_digest, "SMALL_BYTES", 10_000)
    assert content(directory).known() == read(directory)[0]
    assert not (directory / NAME).exists()
    assert not cached(tmp_path)


# ----------------------------------------------------------------------------------------------- where it is kept


def test_a_folder_that_cannot_be_written_is_kept_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        directory, cache = write(place / "model"), place / "cache"
        cache.mkdir()
        cache.chmod(0o777)
        directory.chmod(0o555)
        for path in directory.iterdir():
            path.chmod(0o444)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        with without_rights():
            first, pieces = read(directory)
            assert pieces == 4
            assert read(directory) == (first, 0)
            cache.joinpath("opsin", "digests").chmod(0o555)
            assert read(directory) == (first, 0)
        directory.chmod(0o755)
        assert sorted(path.name for path in directory.iterdir()) == ["a.safetensors", "b.safetensors", "config.json"]
        (kept,) = cache.rglob("*.json")
        assert str(directory).encode() not in kept.read_bytes()


def test_where_nothing_can_be_written_it_is_read_every_time(directory: Path, tmp_path: Path) -> None:
    (directory / NAME).mkdir()
    (tmp_path / "cache").write_text("no folder")
    first, _ = read(directory)
    assert read(directory) == (first, 4)
    assert sorted(path.name for path in directory.iterdir()) == [NAME, *FILES, "config.json"]  # nor left half


def test_a_cache_that_nobody_names_is_not_looked_for(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "relative")
    for stated in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", stated)
        assert read(directory)[1] == 4
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    first, _ = read(directory)
    assert read(directory) == (first, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "model"]


def test_two_models_of_one_name_have_places_of_their_own(tmp_path: Path) -> None:
    digests = set()
    for parent in ("one", "two"):
        (tmp_path / parent).mkdir()
        directory = write(tmp_path / parent / "model")
        if parent == "two":
            edit(directory / FILES[0])
        (directory / NAME).mkdir()
        digests.add(read(directory)[0])
        (tmp_path / f"link-{parent}").symlink_to(directory)
        assert read(tmp_path / f"link-{parent}")[1] == 0
    assert len(digests) == len(cached(tmp_path)) == 2


# ----------------------------------------------------------------------------------------------- what is not believed


def believed(directory: Path, document: bytes) -> bool:
    """Whether a document that says nothing true is believed."""
    true, _ = read(directory)
    (directory / NAME).write_bytes(document)
    found, pieces = read(directory)
    return found != true or pieces != 4


def test_documents_of_others(directory: Path) -> None:
    entry = {"stamp": {"size": 1, "mtime_ns": 1, "ctime_ns": 1}, "tensors": {}}
    for document in (
        b"", b"\0" * 1000, b"\xff\xfe{}", b"[]", b"{}", b"null", b'{"format": 1}', b"[" * 10**6, b'{"files":' * 10**5,
        b'{"format": 2, "checksum": "", "files": {}}', b'{"format": 1, "checksum": "", "files": {"a": null}}',
        b'{"format": 1' + b"0" * 10**6 + b"}", b'{"format": 1, "checksum": "\\ud800", "files": {}}',
        json.dumps({"format": 1, "checksum": "", "files": {"a": entry}}).encode(),
    ):  # fmt: skip
        assert not believed(directory, document), document[:50]


def test_a_huge_document_is_not_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(directory)
    size = (directory / NAME).stat().st_size
    with (directory / NAME).open("ab") as opened:
        opened.write(b" " * 1000)
    assert read(directory)[1] == 0
    monkeypatch.setattr(digest_store, "MAX_BYTES", size)
    with (directory / NAME).open("ab") as opened:
        opened.write(b" " * 1000)
    assert read(directory)[1] == 4
    os.truncate(directory / NAME, 2**40)  # sparse
    monkeypatch.undo()
    monkeypatch.setattr(content_digest, "SMALL_BYTES", 0)
    assert read(directory)[1] == 4


def test_what_is_no_plain_file_is_not_waited_for(directory: Path) -> None:
    os.mkfifo(directory / NAME)
    first, _ = read(directory)
    assert read(directory) == (first, 0)  # (replaced)
    (directory / NAME).unlink()
    (directory / NAME).symlink_to("/dev/zero")
    assert read(directory) == (first, 4)


def test_a_damaged_document_is_not_believed(directory: Path) -> None:
    true, _ = read(directory)
    whole = (directory / NAME).read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] = draw.choice(b'0123456789abcdef"{}:, ')
        (directory / NAME).write_bytes(damaged if draw.random() < 0.8 else damaged[: draw.randrange(len(whole))])
        assert content(directory).known() in (None, true)
        assert read(directory)[0] == true


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
STAMPS = st.fixed_dictionaries({"size": JSON, "mtime_ns": JSON, "ctime_ns": JSON})
HASHED = st.fixed_dictionaries({"stamp": STAMPS | JSON, "tensors": st.dictionaries(st.text(), JSON, max_size=3) | JSON})
DOCUMENTS = st.fixed_dictionaries(
    {"format": st.just(1), "checksum": JSON, "files": st.dictionaries(st.sampled_from(FILES), HASHED | JSON)}
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | (DOCUMENTS | JSON).map(lambda value: json.dumps(value).encode()))
def test_no_document_is_too_strange(directory: Path, document: bytes) -> None:
    assert not believed(directory, document)


PROGRAM = """
import sys
from pathlib import Path
from opsin_plugins.loading import content_digest, digest_store
from opsin_plugins.loading.files import read_model_files

content_digest.SMALL_BYTES = digest_store.SETTLED_NS = 0
files = read_model_files(Path(sys.argv[1]))
found = set()
for turn in range(150):
    if turn % 3 == 0:
        (files.directory / digest_store.NAME).unlink(missing_ok=True)
    found.add(content_digest.ContentDigest(files).compute())
print(*found, "torch" in sys.modules)
"""


def test_processes_that_write_at_the_same_time(directory: Path) -> None:
    true, _ = read(directory)
    command = [sys.executable, "-c", PROGRAM, str(directory)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert said == [f"{true} False\n"] * 3
    assert content(directory).known() in (None, true)
    assert {path.name for path in directory.iterdir()} - {NAME} == {*FILES, "config.json"}
