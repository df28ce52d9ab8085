"""`opsin check-data`: what is in a file, what is learned from it, and what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from opsin_client.visible import visible
from opsin_server.check_data.learned import MARKS, pieces, shown
from opsin_server.cli import app
from opsin_server.errors import ConfigError
from opsin_server.jobs.options import DataOptions
from opsin_server.jobs.prepare import Source, prepare
from opsin_server.text.encode_prompt import PromptEncoder
from support import talk


def run(file: Path, *flags: str) -> Result:
    return CliRunner().invoke(app, ["check-data", str(file), *flags])


def row(text: str, *parts: Any) -> dict[str, Any]:
    return {"messages": [talk.user(*parts, "what is it?"), talk.assistant(text)]}


def test_a_file_that_would_be_trained_on(
    write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(talk.png(picture(1)))
    rows = [row("a circle", picture(n % 2)) for n in range(9)]
    rows.append({"messages": [{"role": "user", "content": "<image>?"}, talk.assistant("b")], "image": "pictures/a.png"})
    found = run(write(*rows))
    assert found.exit_code == 0, found.output
    for said in (
        r"rows +10 conversations, 10 with images",
        r"images +2 different ones: 10 in all rows, 120 visual tokens",
        r"tokens +\d+, [\d.]+ a row, \d+ at most",
        r"learned +\d+ of them \(\d+\.\d%\)",
        r"to +\d+ tokens +\d+ #{40}",
        r"verdict +it would be trained on",
        r"line 1: \d of \d+ tokens are learned",
        r"<image: 12 tokens>",
        r"\[\[a circle<\|im_end\|>\]\]",
    ):
        assert re.search(said, found.output), (said, found.output)
    assert found.output.count("are learned") == 3
    assert "are learned" not in run(write(*rows), "--show", "0").output


def test_a_file_that_would_be_refused(write: Callable[..., Path]) -> None:
    rows = [row("a")] * 11
    found = run(write(*rows[:3], b"{", *rows[3:], {"messages": [], "\x1b[2J": 1}))
    assert found.exit_code == 1
    assert re.search(r"fault +line 4: not valid JSON", found.output)
    assert re.search(r"fault +line 13: ", found.output)
    assert re.search(r"verdict +the training file is refused: line 4: .* \(and 1 more\)", found.output)
    assert "\x1b" not in found.output
    skipping = run(write(*rows, b"{"), "--on-bad-row", "skip")
    assert skipping.exit_code == 0
    assert re.search(r"wrong +1 rows", skipping.output)


def test_for_programs(write: Callable[..., Path]) -> None:
    file = write(*[row("a red circle " * n) for n in range(1, 13)], b"x")
    found = json.loads(run(file, "--json", "--on-bad-row", "skip", "--max-seq-length", "40").output)
    assert found["accepted"] is False
    assert found["refusal"].endswith("at least 10 are needed")
    assert found["rows"] + found["left_out"] == 12
    assert found["faults"] == [{"line": 13, "message": "not valid JSON: expecting value at character 1"}]
    assert sum(count for _, count in found["lengths"]) == found["rows"]
    assert found["remarks"][0]["rows"] == found["left_out"]
    whole = json.loads(run(write(*[row("a")] * 10), "--json").output)
    assert (whole["accepted"], whole["refusal"], whole["rows"]) == (True, None, 10)


def test_options_reach_the_rows(write: Callable[..., Path], picture: Callable[..., Image.Image]) -> None:
    file = write(*[row("a", picture(1, 64, 64))] * 10)
    tokens = {
        flags: json.loads(run(file, "--json", *flags).output)["visual_tokens"]
        for flags in ((), ("--resize", "48"), ("--resize", "64x48"), ("--max-pixels", "2304"), ("--resize", "max"))
    }
    assert list(tokens.values()) == [160, 90, 120, 90, 160]
    snapped = run(file, "--json", "--resize", "45", "--snap-to-patch-size")
    assert json.loads(snapped.output)["visual_tokens"] == 90
    everything = json.loads(run(file, "--json", "--train-on", "all").output)
    assert everything["labels"] == everything["tokens"] - everything["visual_tokens"] - 10
    for wrong in ("0", "some", "1x", "-3"):
        assert isinstance(run(file, "--resize", wrong).exception, ConfigError)


def test_preferences(write: Callable[..., Path]) -> None:
    pair = {
        "input": {"messages": [talk.user("q")]},
        "preferred_output": [talk.assistant("good")],
        "non_preferred_output": [talk.assistant("bad")],
    }
    found = run(write(*[pair] * 10), "--show", "1")
    assert "10 pairs to choose between" in found.output
    assert re.search(r"\[\[good.*\[\[bad", found.output, re.DOTALL)


@given(st.text())
def test_no_text_moves_a_terminal(text: str) -> None:
    made = visible(text)
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", made)
    assert visible(made) == made
    assert text.isprintable() <= (made == text)


def test_learned_text_is_coloured_on_a_terminal(
    encoder: PromptEncoder, write: Callable[..., Path], tmp_path: Path
) -> None:
    made = prepare(write(row("a [b] circle")), Source(encoder, DataOptions(min_rows=1)), tmp_path / "out").row(0)
    learned = [text for text, is_learned in pieces(made, encoder.tokenizer) if is_learned]
    assert learned == ["a [b] circle<|im_end|>"]
    plain = shown(made, encoder.tokenizer, colour=False).plain
    assert "".join(MARKS).join(["", ""]) not in plain
    assert f"{MARKS[0]}{learned[0]}{MARKS[1]}" in plain
    console = Console(force_terminal=True, color_system="standard", no_color=False, width=200)
    with console.capture() as captured:
        console.print(shown(made, encoder.tokenizer, colour=True))
    assert f"\x1b[1;32m{learned[0]}" in captured.get()


@pytest.mark.parametrize("flag", ["--model", "--max-seq-length"])
def test_what_is_typed_wrongly(flag: str, write: Callable[..., Path], tmp_path: Path) -> None:
    found = run(write(row("a")), flag, str(tmp_path / "none"))
    assert found.exit_code != 0
    assert run(tmp_path / "none").exit_code == 2
