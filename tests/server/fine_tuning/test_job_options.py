"""What is wrong in a job's `opsin` object is said by its JSON name and in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from opsin_server.errors import BadRequest
from opsin_server.fine_tuning.job_options import FIELDS, read_options


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lora_rank", "8", "a whole number of at least 1 and at most 1,024"),
        ("lora_rank", True, "a whole number of at least 1 and at most 1,024"),
        ("lora_alpha", 1e8, "a number of more than 0 and at most 65,536"),
        ("lr_schedule", "cosin", "one of cosine, linear or constant"),
        ("promote", 1, "one of manual, on_success or if_better"),
        ("finetune_vision_layers", "yes", "true or false"),
        ("target_modules", [1], "a list of texts"),
        ("publish_as", "", "a text of at least 1 characters and at most 256 characters"),
    ],
)
def test_a_wrong_value_is_said_with_what_it_may_be(name: str, value: Any, words: str) -> None:
    given = {"publish_as": "a"} | {name: value} if name == "promote" else {name: value}
    with pytest.raises(BadRequest) as refused:
        read_options(given)
    error = refused.value
    assert (error.code, error.param) == ("invalid_value", f"opsin.{name}")
    assert error.message == f"Invalid value for 'opsin.{name}': it must be {words}"


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_option_takes_an_object(name: str) -> None:
    with pytest.raises(BadRequest, match=f"'opsin.{name}': it must be (?!another)"):
        read_options({"publish_as": "a"} | {name: {}})
