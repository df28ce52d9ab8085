"""generation_config.json says how to draw where a request does not."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine, Script

from opsin_server.api.sampling_defaults import SamplingDefaults, read_sampling_defaults
from opsin_server.errors import ConfigError

CHAT: dict[str, Any] = {"model": "opsin-test", "messages": [{"role": "user", "content": "hi"}]}
MADE = {"_from_model_config": True}
QWEN = {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.05}


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, SamplingDefaults()),
        ({"eos_token_id": 2, "pad_token_id": 0}, SamplingDefaults()),
        (QWEN, SamplingDefaults(0.01, 0.001, 1, 0.0, 1.05)),
        ({"do_sample": False}, SamplingDefaults(temperature=0.0)),
        ({"do_sample": False, "temperature": 0.6}, SamplingDefaults(temperature=0.0)),
        ({"do_sample": None, "temperature": None, "top_k": None}, SamplingDefaults()),
        ({"temperature": 0.7, "top_k": -1, "min_p": 0.05}, SamplingDefaults(0.7, 1.0, 0, 0.05)),
        ({"top_p": 1, "top_k": 50.0}, SamplingDefaults(top_k=50)),
        # What transformers 5 makes of a config.json of version 4, which listed its class's defaults.
        ({**MADE, "do_sample": False, "temperature": 1.0, "top_k": 50}, SamplingDefaults()),
        ({**MADE, "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 1.0}, SamplingDefaults(0.6, top_k=20)),
        ({**MADE, "repetition_penalty": 1.0, "top_p": 0.9}, SamplingDefaults(top_p=0.9)),
    ],
)
def test_what_the_file_says(generation: dict[str, Any], expected: SamplingDefaults) -> None:
    assert read_sampling_defaults(generation) == expected


@pytest.mark.parametrize(
    "generation",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"top_k": "many"},
        {"min_p": True},
        {"repetition_penalty": 0},
    ],
)
def test_what_no_draw_can_have_is_refused(generation: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(generation))} .*--generation-config none"):
        read_sampling_defaults(generation)


def told(start: Any, **fields: Any) -> Any:
    engine = FakeEngine(Script(b"x"))
    start(engine, sampling=read_sampling_defaults(QWEN)).client().chat.completions.create(**CHAT, extra_body=fields)
    return engine.streams[0].submit.sampling


def test_they_apply_where_a_request_leaves_them_out(start: Any) -> None:
    found = told(start)
    assert (found.temperature, found.top_p, found.top_k, found.min_p) == (0.01, 0.001, 1, 0.0)
    assert found.repetition_penalty == 1.05


def test_a_request_counts_field_by_field(start: Any) -> None:
    found = told(start, temperature=1, top_k=0, repetition_penalty=1)
    assert (found.temperature, found.top_p, found.top_k, found.repetition_penalty) == (1, 0.001, 0, 1)
    assert told(start, top_k=-1, top_p=None).top_k == 0


def test_what_the_operator_reads() -> None:
    assert read_sampling_defaults(QWEN).described() == "temperature 0.01, top_p 0.001, top_k 1, repetition_penalty 1.05"
    assert SamplingDefaults().described() == ""
