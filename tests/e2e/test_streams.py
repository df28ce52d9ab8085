"""Standard streams that are closed, full, or read by nobody: a server serves all the same, a command says so."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from support.served import OPSIN, Served, free_port, open_files, wait_for
from support.served_checks import ends, works
from support.talk import MINI


@contextmanager
def stream_of(kind: str) -> Iterator[int]:
    """A file descriptor that nothing can be written to, or no more than fits."""
    if kind == "the terminal is gone":
        leader, follower = pty.openpty()
        os.close(leader)
        yield follower
        os.close(follower)
        return
    reader, writer = os.pipe()
    if kind == "the reader has left":
        os.close(reader)
    yield writer
    os.close(writer)
    if kind == "the reader never reads":
        os.close(reader)


@pytest.mark.parametrize("redirections", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_server_needs_no_streams(redirections):
    with Served(redirections=redirections, port=free_port()) as server:
        works(server)
        # (What is opened takes the lowest number that is free, and what is printed would go into that.)
        own = str(server.room.folder / "stdout")
        assert set(open_files(server.pid, up_to=2)) <= {"/dev/null", "/dev/full", own}
        ends(server)


@pytest.mark.parametrize("kind", ["the reader has left", "the reader never reads", "the terminal is gone"])
def test_a_server_whose_log_goes_nowhere(kind):
    """Also when the engine dies and has something to say; a pipe holds 64 KiB."""
    with stream_of(kind) as stream, Served(stdout=stream, stderr=stream, port=free_port()) as server:
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            for _ in range(450):
                client.get("/nothing", headers={"x-request-id": "x" * 128})
        engine = server.engine
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: server.children() not in ([engine], []) and server.is_ready(), 60)
        works(server)
        ends(server)


@pytest.mark.parametrize("words", [("--version",), ("plugins",), ("check", str(MINI)), ("plugins", "check", "mistral")])
def test_a_command_says_that_there_is_no_room(words):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([OPSIN, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "opsin: standard output: No space left on device\n")


@pytest.mark.parametrize("words", [("--version",), ("plugins",), ("plugins", "check", "mistral")])
def test_a_command_whose_reader_has_left_says_nothing(words):
    with stream_of("the reader has left") as stream:
        done = subprocess.run([OPSIN, *words], stdout=stream, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("redirections", [">&-", ">&- 2>&-", "<&- >/dev/null 2>&-"])
def test_a_command_without_streams(redirections):
    command = ["/bin/sh", "-c", f'exec "$0" plugins {redirections}', OPSIN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
