"""examples/embeddings finds what it says that it finds, with the shipped model."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from support.served import Served

FOLDER = Path(__file__).parents[2] / "examples/embeddings"


def test_a_question_says_what_is_alike(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = spec_from_file_location("search", FOLDER / "search.py")
    assert found is not None
    assert found.loader is not None
    script = module_from_spec(found)
    found.loader.exec_module(script)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{served.url}/v1")
    monkeypatch.setenv("NO_PROXY", "*")
    script.main()
    said = capsys.readouterr().out
    shares = {
        question: (int(shape), int(color))
        for question, shape, color in re.findall(r"(\S.*\S) +the same shape +(\d+)%, the same color +(\d+)%", said)
    }
    assert shares["What shape is this?"][0] > 90
    assert shares["What color is it?"][1] > 90
    assert max(shares["What shape is this?"][1], shares["What color is it?"][0]) < 60
    shown = (FOLDER / "README.md").read_text("utf-8")
    assert said.splitlines()[0] in shown
