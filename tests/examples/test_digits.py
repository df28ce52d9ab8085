"""examples/digits, with a few of its pictures, against a running server."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from openai.resources.fine_tuning.jobs import Jobs
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from support.served import Served

SCRIPT = Path(__file__).parents[2] / "examples/digits/digits.py"


def test_the_script_goes_from_pictures_to_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = spec_from_file_location("digits", SCRIPT)
    assert found is not None
    assert found.loader is not None
    script = module_from_spec(found)
    found.loader.exec_module(script)
    few = load_digits()
    monkeypatch.setattr(script, "load_digits", lambda: Bunch(images=few.images[:80], target=few.target[:80]))
    monkeypatch.setattr(script, "TRAIN", 40)
    monkeypatch.setattr(script, "VALID", 20)
    create = Jobs.create
    monkeypatch.setattr(  # "auto" would be 500 steps
        Jobs, "create", lambda self, **given: create(self, **given, hyperparameters={"n_epochs": 2})
    )
    with Served() as served:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{served.url}/v1")
        monkeypatch.setenv("NO_PROXY", "*")
        script.main()
        served.close()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("before: ")
    assert "The job has successfully completed" in said
    assert any(line.startswith("80 steps in ") for line in said)
    assert said[-1].startswith("after: ")
    assert ":opsin:digits:" in said[-1]
