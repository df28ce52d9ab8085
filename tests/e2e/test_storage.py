"""What `opsin serve` keeps, seen from outside: in a newcomer's home, and for one server at a time."""

from __future__ import annotations

import signal
import subprocess

from support.served import OPSIN, Process, Room, Served

HOME = ".local/share/opsin"


def said(process: Process) -> str:
    """One line, from a server that did not start."""
    assert process.wait() == 1, process.stderr
    (line,) = process.stderr.strip().splitlines()
    return line


def run(room: Room, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([OPSIN, *words], capture_output=True, text=True, cwd=room.work, env=room.environment())


def test_without_options_it_keeps_its_data_in_the_home():
    """A second server is told which process has it, a backup can be made meanwhile, and a kill does no harm."""
    with Served(storage=()) as server:
        directory = server.room.folder / "home" / HOME
        assert directory.stat().st_mode & 0o777 == 0o700
        assert {"lock", "opsin.db", "blobs"} <= {path.name for path in directory.iterdir()}
        second = run(server.room, "serve", "--port", "0")
        assert second.returncode == 1
        assert second.stderr == (
            f"opsin: {directory} is in use by process {server.pid}: give another directory with --data-dir, or "
            "--ephemeral\n"
        )
        done = run(server.room, "backup", "all.tar")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("all.tar: 0 rows, 0 files")
        server.signal(signal.SIGKILL)
        server.wait()
        for words in (("restore", "all.tar", "--data-dir", "other"), ("restore", "all.tar"), ("backup", "second.tar")):
            done = run(server.room, *words)
            assert done.returncode == 0, done.stderr


def test_a_refusal_takes_the_engine_along(tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / "opsin.db").write_text("a letter to a friend")
    with Process("serve", "--port", "0", "--data-dir", str(tmp_path), storage=()) as server:
        assert said(server) == (f"opsin: {tmp_path}/opsin.db is no SQLite database: move it away, or restore a backup")
        assert not server.room.left()
