"""What is wrong in a job's `opsin` object is said by its JSON name and in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from opsin_server.errors import BadRequest
from opsin_server.fine_tuning.job_options import FIELDS, read_options
from opsin_server.jobs.options import ImageOptions
from opsin_server.jobs.training_options import LARGEST

MOST = f"{LARGEST:,}"


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


@pytest.mark.parametrize(
    ("name", "most"),
    [("lora_rank", "1,024"), ("lora_plus_ratio", "1,000"), ("weight_decay", "1"), ("eval_steps", MOST)],
)
@pytest.mark.parametrize("value", [10**9 + 1, 10**400])
def test_a_number_that_is_too_large_is_told_its_own_bound(name: str, most: str, value: int) -> None:
    with pytest.raises(BadRequest) as refused:
        read_options({name: value})
    assert refused.value.param == f"opsin.{name}"
    assert refused.value.message.endswith(f" at most {most}")


@pytest.mark.parametrize(
    ("said", "images"),
    [
        ("min", {"resize": "min"}),
        (48, {"resize": 48}),
        ("48", {"resize": 48}),
        ("640x480", {"size": (640, 480)}),
        (None, {}),
    ],
)
def test_pictures_are_resized_as_on_the_command_line(said: Any, images: dict[str, Any]) -> None:
    assert read_options({"resize": said}).data.images == ImageOptions(**images)
    if images:
        given = {"resize": said, "resize_side": "max", "snap_to_patch_size": True}
        assert read_options(given).data.images == ImageOptions(**images, side="max", snap=True)


@pytest.mark.parametrize(
    ("given", "name", "words"),
    [
        ({"resize": "large"}, "resize", "must be min, max, a number of pixels, or WIDTHxHEIGHT"),
        ({"resize": 0}, "resize", "must be min, max, a number of pixels, or WIDTHxHEIGHT"),
        ({"resize": {}}, "resize", "must be min, max, a number of pixels, or WIDTHxHEIGHT"),
        ({"snap_to_patch_size": True}, "snap_to_patch_size", "is true, and nothing is resized: give resize"),
    ],
)
def test_options_of_pictures_are_refused_by_name(given: dict[str, Any], name: str, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_options(given)
    assert (refused.value.code, refused.value.param) == ("invalid_value", f"opsin.{name}")
    assert refused.value.message == f"opsin.{name} {words}"


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_option_takes_an_object(name: str) -> None:
    with pytest.raises(BadRequest, match=f"'opsin.{name}': it must be (?!another)"):
        read_options({"publish_as": "a"} | {name: {}})
