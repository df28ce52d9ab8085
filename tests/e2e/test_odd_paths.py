"""Paths and words that are no ASCII, in locales that know nothing else, and a TMPDIR that takes no socket."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.served import OPSIN, Process, Room, Served
from support.talk import MINI, SAMPLES

# Python's own answer to LC_ALL=C is UTF-8; the second takes that away, as an old image's settings may.
LOCALES = [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
NAME = "mödel-模型"


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.remove()


def opsin(room: Room, locale: dict[str, str], *words: str | bytes, typed: bytes = b"") -> tuple[int, str, str]:
    done = subprocess.run(
        [OPSIN, *words], input=typed, capture_output=True, env=room.environment(**locale), timeout=120
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: " ".join(map("=".join, locale.items())))
def test_a_model_and_a_picture_with_names_that_are_no_ascii(tmp_path: Path, room: Room, locale: dict[str, str]):
    model, picture = os.fsencode(tmp_path) + f"/{NAME}".encode(), os.fsencode(tmp_path) + b"/bild-\xf6.png"
    shutil.copytree(os.fsencode(MINI), model)
    shutil.copy(os.fsencode(SAMPLES / "red_circle.png"), picture)
    temporary = str(tmp_path / "ö") + os.fsdecode(b"\xff")
    os.mkdir(temporary)  # noqa: PTH102
    assert opsin(room, locale, "check", model)[::2] == (0, "")
    with Served(model, "--served-model-name", NAME.encode(), env={**locale, "TMPDIR": temporary}) as server:
        assert [model.id for model in server.client().models.list()] == [NAME]
        chat = ("chat", "--url", f"{server.url}/v1", "--model", NAME.encode())
        code, answer, said = opsin(room, locale, *chat, "--image", picture, "What is in the picture?")
        assert (code, answer, said) == (0, "A red circle.\n", "")
        code, answer, said = opsin(room, locale, *chat, typed="Grüße\n".encode() + b"\xff\n")
        assert (code, answer.count("> "), said) == (0, 3, "")
        code, answer, said = opsin(room, locale, *chat, "--image", picture + b".nowhere", "Größe?")
        assert (code, answer, len(said.splitlines())) == (1, "", 1)
        assert r"-\xf6.png.nowhere: No such file or directory" in said
        assert server.client().models.retrieve(NAME).id == NAME
        server.close()
        assert os.listdir(temporary) == []  # noqa: PTH208


@pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: " ".join(map("=".join, locale.items())))
def test_a_model_whose_path_is_no_utf8_is_one_sentence(tmp_path: Path, room: Room, locale: dict[str, str]):
    model = os.fsencode(tmp_path) + b"/m\xf6del"
    shutil.copytree(os.fsencode(MINI), model)
    for command in (("check",), ("serve", "--port", "0")):
        code, answer, said = opsin(room, locale, *command, model)
        assert (code, answer, len(said.splitlines())) == (1, "", 1)
        assert r"/m\xf6del/model.safetensors: the safetensors library opens no path that is not UTF-8" in said


def test_an_answer_goes_to_a_stream_of_ascii(room: Room, served: Served):
    """The server's sentence names what was asked for; in ASCII it is escaped, and no error of its own."""
    words = ("chat", "--url", f"{served.url}/v1", "--model", NAME, "Hello")
    code, _, said = opsin(room, {"PYTHONIOENCODING": "ascii:strict"}, *words)
    assert code == 1
    assert r"m\xf6del-\u6a21\u578b" in said
    assert len(said.splitlines()) == 1


def test_a_plugin_check_prints_any_name(room: Room):
    code, answer, said = opsin(room, {"PYTHONIOENCODING": "ascii:strict"}, "plugins", "check", NAME)
    assert (code, said) == (1, "")
    assert answer.startswith(r"m\xf6del-\u6a21\u578b")


@pytest.mark.parametrize("name", ["x" * 100, "nowhere/at/all"])
def test_a_temporary_folder_that_takes_no_socket(tmp_path: Path, name: str):
    """A Unix socket's path has at most 107 bytes; a short folder that is private all the same takes it."""
    folder = tmp_path / name
    if "/" not in name:
        folder.mkdir()
    before = set(Path("/tmp").glob("opsin-*"))
    with Served(env={"TMPDIR": str(folder), "XDG_RUNTIME_DIR": ""}) as server:
        (made,) = set(_folders_of(server)) - before
        assert made.stat().st_mode & 0o777 == 0o700
        server.close()
        assert not made.exists()
        assert not folder.exists() or list(folder.iterdir()) == []


def _folders_of(server: Served) -> list[Path]:
    """Where the engine was told to knock."""
    words = Path(f"/proc/{server.engine}/cmdline").read_text().split("\0")
    return [Path(word.removeprefix("ipc://")).parent for word in words if word.startswith("ipc://")]


def test_no_place_for_a_socket_is_one_sentence(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(NOWHERE)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with Process("serve", "--port", "0", env={"PYTHONPATH": path}, storage=()) as process:
        assert process.wait() == 1
        (sentence,) = process.stderr.splitlines()
        assert "no temporary directory takes a socket (set TMPDIR to one that does)" in sentence


NOWHERE = """
import tempfile

def refuse(prefix=None, dir=None, suffix=None):
    raise OSError(30, "Read-only file system", dir)

tempfile.mkdtemp = refuse
"""
