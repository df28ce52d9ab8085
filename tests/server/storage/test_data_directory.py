"""Who owns the data directory, what lies in it, and what is said where it cannot be."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from opsin_server.errors import ConfigError
from opsin_server.storage.data_directory import DataDirectory, default_path
from support.stored import python

OWNER = """
import sys
from pathlib import Path
from opsin_server.storage.data_directory import DataDirectory
with DataDirectory.open(Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.read()
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def sentence(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        DataDirectory.open(path).close()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def as_ordinary_user(act: Callable[[], str]) -> str:
    """What a child says that is no super-user, to whom every file is open."""
    if os.geteuid() != 0:
        return act()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writer, act().encode())
        except BaseException as error:
            os.write(writer, f"failed: {error!r}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def test_it_is_made_for_its_owner_alone(tmp_path: Path):
    path = tmp_path / "deep" / "data"
    with DataDirectory.open(path) as directory:
        assert {entry.name for entry in path.iterdir()} == {"lock", "blobs", "cache", "tmp"}
        assert {mode(folder) for folder in (path, directory.blobs, directory.cache, directory.tmp)} == {0o700}
        assert (path / "lock").read_text() == f"{os.getpid()}\n"


def test_what_others_could_enter_is_closed_to_them(tmp_path: Path):
    tmp_path.chmod(0o755)
    with DataDirectory.open(tmp_path):
        assert mode(tmp_path) == 0o700


def test_files_that_were_being_written_are_gone_at_a_start(tmp_path: Path):
    with DataDirectory.open(tmp_path) as directory:
        (directory.tmp / "half").write_bytes(b"x")
        (directory.blobs / "kept").write_bytes(b"x")
    with DataDirectory.open(tmp_path) as directory:
        assert list(directory.tmp.iterdir()) == []
        assert (directory.blobs / "kept").exists()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path):
    path = tmp_path / "data"
    with python(OWNER, path, stdin=-1) as owner:
        assert owner.stdout.readline() == "owned\n"
        said = sentence(path)
        assert str(path) in said
        assert f"process {owner.pid}" in said
        assert "--data-dir" in said
        assert "--ephemeral" in said
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert (path / "lock").read_text() == f"{owner.pid}\n"
    with DataDirectory.open(path):
        pass


def test_one_process_owns_it_once(tmp_path: Path):
    with DataDirectory.open(tmp_path):
        assert f"process {os.getpid()}" in sentence(tmp_path)


def test_somebodys_own_folder_is_not_taken(tmp_path: Path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "thesis").write_text("x")
    assert "is not empty" in sentence(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp", "thesis"]


def test_a_new_volume_is_taken(tmp_path: Path):
    (tmp_path / "lost+found").mkdir()
    with DataDirectory.open(tmp_path):
        pass


def test_what_is_no_directory_is_said(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("x")
    assert sentence(file) == f"{file} is not a directory"
    assert str(file / "data") in sentence(file / "data")


def test_what_is_not_ours_to_write_is_said():
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders cannot be entered by an ordinary user
    try:
        folder.chmod(0o555)
        for path in (folder, folder / "new"):
            assert as_ordinary_user(lambda path=path: sentence(path)) == (
                f"{path} cannot be used as the data directory: Permission denied"
            )
    finally:
        folder.rmdir()


def test_a_temporary_one_is_gone_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with DataDirectory.temporary() as directory:
        assert directory.path.parent == tmp_path
        assert mode(directory.path) == 0o700
        (directory.blobs / "file").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="--ephemeral finds no temporary directory: No such file"):
        DataDirectory.temporary()


def test_the_default_is_where_xdg_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_path() == Path("/data/opsin")
    for said in ("", "relative"):  # which the standard has passed over
        monkeypatch.setenv("XDG_DATA_HOME", said)
        assert default_path() == tmp_path / ".local/share/opsin"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_path() == tmp_path / ".local/share/opsin"
