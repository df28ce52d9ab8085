"""What a model is called when nobody named it, and names that are no text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opsin_server.served_name import model_name, readable

COMMIT = "895c3a49bc3fa70a340399125c650a463535e71c"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model in it."""
    (tmp_path / "models" / "my-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize(
    "path", ["my-model", "./my-model", "my-model/", "my-model/.", "my-model/../my-model", "../models/my-model"]
)
def test_a_folder_however_it_is_written(here: Path, path: str) -> None:
    assert model_name(Path(path)) == "my-model"


def test_the_folder_that_one_is_in(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here / "my-model")
    assert model_name(Path()) == "my-model"
    assert model_name(Path("..")) == "models"
    assert model_name(Path("../my-model/..")) == "models"


def test_a_link_has_a_name_of_its_own(here: Path) -> None:
    (here / "0123abc").mkdir()
    (here / "latest").symlink_to(here / "0123abc")
    assert model_name(here / "latest") == "latest"
    assert model_name(Path("latest/")) == "latest"


def test_a_gguf_is_called_without_its_ending_and_its_number(here: Path) -> None:
    assert model_name(Path("my.Q4_K_M.gguf")) == "my.Q4_K_M"
    assert model_name(Path("my.Q4_K_M-00001-of-00003.gguf")) == "my.Q4_K_M"


def test_the_root_has_a_name_too() -> None:
    assert model_name(Path("/")) == "model"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("models--Qwen--Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"),
        ("models--gpt2", "gpt2"),
        ("models--a-b--c_d.e", "a-b/c_d.e"),
    ],
)
def test_a_snapshot_is_called_as_its_repository(
    here: Path, monkeypatch: pytest.MonkeyPatch, folder: str, name: str
) -> None:
    snapshot = here / folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    assert model_name(snapshot) == name
    monkeypatch.chdir(snapshot.parent)
    assert model_name(Path(COMMIT)) == name
    monkeypatch.chdir(snapshot)
    assert model_name(Path()) == name
    (here / "mine").symlink_to(snapshot)
    assert model_name(here / "mine") == "mine"


def test_a_folder_of_snapshots_that_is_no_cache(here: Path) -> None:
    assert model_name(here / "run-7" / "snapshots" / "step-100") == "step-100"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain", "plain"),
        ("mödel-模型".encode(), "mödel-模型"),
        (b"m\xf6del", r"m\xf6del"),
        ("ö".encode() + b"\xff", r"ö\xff"),
    ],
)
def test_bytes_of_a_path_are_readable(raw: bytes, text: str) -> None:
    """Also where the locale takes every byte beyond ASCII for none of its own (LC_ALL=C, PYTHONUTF8=0)."""
    assert readable(os.fsdecode(raw)) == text
    assert readable(raw.decode("ascii", "surrogateescape")) == text
    assert readable(text).encode() == text.encode()


def test_half_a_character_is_readable() -> None:
    assert readable("\ud800x\udfff") == r"\ud800x\udfff"
