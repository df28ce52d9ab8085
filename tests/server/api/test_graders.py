"""Graders that are tried on one sample, through OpenAI's SDK."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from running_server import RunningServer

from opsin_server.api.answer import grade


def grader(**changes: Any) -> Any:
    return {"type": "string_check", "name": "n", "operation": "eq", "input": "x", "reference": "X", **changes}


@pytest.mark.parametrize(
    ("changes", "reward"),
    [
        ({}, 0),
        ({"operation": "ne"}, 1),
        ({"operation": "like", "reference": "{{ item.a.1 }}", "input": "{{sample.output_text}}"}, 1),
        ({"operation": "like", "reference": "NUMBER"}, 0),
        ({"operation": "ilike", "reference": "NUMBER", "input": "{{ sample.output_text }}"}, 1),
        ({"input": "<{{ sample.output_json.number }}>", "reference": "<{{ item.b }}>"}, 1),
        ({"input": "{{ item }}", "reference": '{"a": ["", "number"], "b": 7}'}, 1),
        ({"input": "{{ item.a.1 }} {{", "reference": "number {{"}, 1),
    ],
)
def test_texts_are_filled_in_and_compared(plain: RunningServer, changes: dict[str, Any], reward: int) -> None:
    client = plain.client(_strict_response_validation=True)
    item = {"a": ["", "number"], "b": 7}
    run = client.fine_tuning.alpha.graders.run(grader=grader(**changes), model_sample='{"number": 7}', item=item)
    assert (run.reward, run.metadata.name, run.metadata.errors.invalid_variable_error) == (reward, "n", False)


def test_what_goes_wrong_is_told(plain: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    graders = plain.client(_strict_response_validation=True).fine_tuning.alpha.graders
    for path in ("item.b", "item.a.2", "item.a.x", "other", "sample.output_text.x"):
        errors = graders.run(
            grader=grader(input=f"{{{{ {path} }}}}"), model_sample="no", item={"a": [1]}
        ).metadata.errors
        assert (errors.invalid_variable_error, errors.sample_parse_error) == (True, False), path
    run = graders.run(grader=grader(input="{{ sample.output_json.x }}", operation="ne"), model_sample="no")
    assert (run.reward, run.metadata.errors.sample_parse_error) == (0, True)
    monkeypatch.setattr(grade, "MOST_CHARACTERS", 10)
    with pytest.raises(openai.BadRequestError, match=r"'grader\.input' has more than 10 characters"):
        graders.run(grader=grader(input="{{ sample.output_text }}" * 6), model_sample="no")


def test_only_string_checks_are_run(plain: RunningServer) -> None:
    graders = plain.client(_strict_response_validation=True).fine_tuning.alpha.graders
    checked = graders.validate(grader=grader()).grader
    assert checked is not None
    assert checked.to_dict() == grader()
    for other in ({"type": "python", "source": "x"}, {"type": "multi"}):
        with pytest.raises(openai.BadRequestError) as caught:
            graders.validate(grader=grader(**other))
        assert (caught.value.param, caught.value.code) == ("grader.type", "unsupported_parameter")
