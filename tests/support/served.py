"""`opsin serve` as a user starts it: the console script, in a process of its own, seen only from outside."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai

OPSIN = str(Path(sys.executable).parent / "opsin")
START_SECONDS = 90.0  # on a machine that is busy with other things
STOP_SECONDS = 60.0
# What is asked is on this machine, in plain HTTP: a client that reads the world's certificates takes 25 ms of CPU.
PLAIN: dict[str, Any] = {"trust_env": False, "verify": False}


def wait_for(condition: Callable[[], Any], seconds: float = 30.0, what: str = "it did not come true") -> Any:
    """The first true value of the condition."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} within {seconds:g} s"
        time.sleep(0.02)
    return value


class Room:
    """A home, a working and a temporary folder for a process, so that what it leaves behind is seen."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="opsine2e-", dir="/tmp"))  # short: a socket's path must fit
        for name in ("home", "work", "tmp"):
            (self.folder / name).mkdir()

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def environment(self, **changes: str) -> dict[str, str]:
        """This process's own, without what would change the program under test."""
        ours = ("OPSIN_", "OPENAI_", "PYTEST_", "TORCHINDUCTOR_", "XDG_DATA_HOME")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        kept |= {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp"), "NO_PROXY": "*"}
        return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"} | changes

    def left(self) -> list[str]:
        """Everything that lies in the three folders."""
        return sorted(
            str(p.relative_to(self.folder)) for d in ("home", "work", "tmp") for p in (self.folder / d).glob("**/*")
        )

    def sockets(self) -> list[str]:
        return [name for name in self.left() if name.startswith("tmp/opsin-")]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def dispositions(ignored: Sequence[int] = ()) -> Callable[[], None]:
    """For a child before it becomes its program: signals as an interactive shell hands them on, less those ignored."""

    def prepare() -> None:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    return prepare


class Process:
    """A program with a job of its own, as a shell starts it, and its output in files. redirections: a shell's, of the
    standard streams; ignored: signals that are when it starts; storage: where a server keeps what lasts."""

    def __init__(
        self,
        *arguments: str | bytes,
        room: Room | None = None,
        env: dict[str, str] | None = None,
        redirections: str = "",
        stdout: int | None = None,
        stderr: int | None = None,
        ignored: Sequence[int] = (),
        storage: Sequence[str] = ("--ephemeral",),
    ) -> None:
        self.room = room or Room()
        if arguments[0] == "serve":
            arguments = (*arguments, *storage)
        self._out, self._err = (self.room.folder / name for name in ("stdout", "stderr"))
        shell = ("/bin/sh", "-c", f'exec "$0" "$@" {redirections}') if redirections else ()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*shell, OPSIN, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err if stderr is None else stderr,
                cwd=self.room.work,
                env=self.room.environment(**(env or {})),
                start_new_session=True,
                preexec_fn=dispositions(ignored),
            )
        self.pid = self.process.pid

    @property
    def stderr(self) -> str:
        return self._err.read_text("utf-8", "backslashreplace")

    @property
    def stdout(self) -> str:
        return self._out.read_text("utf-8", "backslashreplace")

    def family(self) -> list[int]:
        """Itself and all that descends from it, whatever sessions they made and whoever has inherited them: known by
        the home that it was given."""
        home = f"HOME={self.room.folder / 'home'}".encode()
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if home in environment_of(pid) and alive(pid)]

    def children(self) -> list[int]:
        return [pid for pid in self.family() if parent_of(pid) == self.pid]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def signal_job(self, number: int) -> None:
        """What a terminal does on Ctrl-C: to every process of the job."""
        os.killpg(self.pid, number)

    def signal_all(self, number: int) -> None:
        """What systemd does to stop a service: to every process of it."""
        for pid in self.family():
            os.kill(pid, number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code; nothing that it started is alive then."""
        code = self.process.wait(seconds)
        wait_for(lambda: not self.family(), 30, f"processes are left: {self.family()};")
        return code

    def discard(self) -> None:
        """Ends what is left of it, however the test ended."""
        for pid in self.family():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)
        self.room.remove()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


class Served(Process):
    """A server on a free port; `url` is what it prints."""

    def __init__(self, *arguments: str | bytes, ready: bool = True, port: int = 0, **options: Any) -> None:
        """port: one that is known, for a server whose announcement cannot be read."""
        super().__init__("serve", *(() if "--port" in arguments else ("--port", str(port))), *arguments, **options)
        self.url = f"http://127.0.0.1:{port}"
        if ready and not port:
            self.wait_announced()
        elif ready:
            self.wait_ready()

    def wait_ready(self) -> None:
        try:
            wait_for(self._answers, START_SECONDS, "it was not ready")
        except AssertionError as error:
            log = self.stderr
            self.discard()
            raise AssertionError(f"{error}\n{log}") from None

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the server left with {self.process.returncode}"
        with suppress(httpx.TransportError):
            return self.is_ready()
        return False

    def wait_announced(self) -> None:
        try:
            found = wait_for(self._announced, START_SECONDS, "no URL was announced")
            self.url = found[1]
        except AssertionError as error:
            log = self.stderr
            self.discard()
            raise AssertionError(f"{error}\n{log}") from None

    def _announced(self) -> re.Match[str] | None:
        assert self.process.poll() is None, f"the server left with {self.process.returncode}"
        text = self.stderr
        return re.search(r"^url\s+(http://\S+)", text, re.MULTILINE) if "\ncurl " in text else None

    @property
    def engine(self) -> int:
        """The engine's process id."""
        (pid,) = [pid for pid in self.children() if b"opsin_server.engine.worker" in command_of(pid)]
        return pid

    def client(self, **options: Any) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(**PLAIN)
        return openai.OpenAI(base_url=self.url + "/v1", http_client=http, **_client_options(options))

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(**PLAIN)
        return openai.AsyncOpenAI(base_url=self.url + "/v1", http_client=http, **_client_options(options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        """On a connection of its own."""
        return httpx.get(self.url + path, timeout=30, **PLAIN, **options)

    def is_ready(self) -> bool:
        return self.get("/health/ready").status_code == 200

    def metrics(self, **options: Any) -> dict[str, float]:
        """name{labels} -> value"""
        lines = self.get("/metrics", **options).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def census(self, **options: Any) -> dict[str, float]:
        """What must be zero when nobody asks for anything."""
        found = self.metrics(**options)
        names = {
            "requests_in_flight": "opsin_requests_in_flight",
            "requests_running": 'opsin_requests_running{engine="0"}',
            "requests_waiting": 'opsin_requests_waiting{engine="0"}',
            "blocks_used": 'opsin_kv_blocks{engine="0",state="used"}',
        }
        return {what: found[name] for what, name in names.items()}

    def running(self, **options: Any) -> int:
        """Requests in the engine's batch."""
        return int(self.census(**options)["requests_running"])

    def wait_idle(self, seconds: float = 30.0, **options: Any) -> float:
        """Seconds until everything was given back."""
        start = time.monotonic()
        wait_for(lambda: not any(self.census(**options).values()), seconds, "blocks or requests were not given back")
        return time.monotonic() - start

    def close(self) -> None:
        """SIGTERM; leaves with 0, and leaves nothing behind."""
        try:
            self.signal(signal.SIGTERM)
            code = self.wait()
            assert code == 0, f"it left with {code}\n{self.stderr}"
            assert "Traceback" not in self.stderr, self.stderr
            assert not self.room.left(), f"files are left: {self.room.left()}"
        finally:
            self.discard()


def _client_options(options: dict[str, Any]) -> dict[str, Any]:
    return {"api_key": "none", "max_retries": 0, "timeout": 120.0, **options}


def parent_of(pid: int) -> int | None:
    """None for a process that is gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[1])


def command_of(pid: int) -> bytes:
    """Nothing for a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def alive(pid: int) -> bool:
    return parent_of(pid) is not None


def environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def open_files(pid: int, up_to: int | None = None) -> list[str]:
    """What each file descriptor stands for, of those up to a number."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if up_to is not None and int(link.name) > up_to:
            continue
        try:
            found.append(str(link.readlink()))
        except OSError:  # closed meanwhile
            continue
    return found


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def resident(pid: int) -> int:
    """Bytes of memory, files not counted."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{pid} has no RssAnon")


@contextmanager
def serving(*options: str, env: dict[str, str] | None = None) -> Iterator[Served]:
    """A server that has given everything back, and ends cleanly, when its tests have passed."""
    server = Served(*options, env=env)
    try:
        yield server
        server.wait_idle()
        server.close()
    finally:
        server.discard()
