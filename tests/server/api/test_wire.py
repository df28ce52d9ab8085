"""Every field of a chat request acts, passes because it changes nothing, or is refused by name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from openai.types import chat as sdk
from openai.types.chat import completion_create_params as params

from opsin_plugins.spec import ImageBudget
from opsin_server.api.body import parse
from opsin_server.api.conversation import LOW_DETAIL_PIXELS, to_prompt
from opsin_server.api.wire import ChatRequest
from opsin_server.errors import BadRequest
from opsin_server.prompt.messages import ImagePart, TextPart

ACT = {"model", "messages", "logprobs", "max_completion_tokens", "max_tokens", "seed", "stop", "stream"} | {
    "stream_options", "temperature", "frequency_penalty", "presence_penalty", "logit_bias", "top_logprobs", "top_p",
}  # fmt: skip
ACT_OF_OURS = {"top_k", "min_p", "repetition_penalty", "ignore_eos", "mm_processor_kwargs"}
EFFECTLESS: dict[str, Any] = {
    "metadata": {"a": "b"},
    "parallel_tool_calls": True,
    "prompt_cache_key": "key",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "someone",
    "user": "someone",
}
# field: (values that change nothing, values that would)
NEUTRAL: dict[str, tuple[list[Any], list[Any]]] = {
    "audio": ([None], [{"voice": "alloy", "format": "wav"}]),
    "function_call": ([None, "none", "auto"], [{"name": "f"}]),
    "functions": ([None, []], [[{"name": "f"}]]),
    "modalities": ([None, ["text"]], [["text", "audio"], "text", []]),
    "moderation": ([None], [{"model": "omni-moderation-latest"}]),
    "n": ([None, 1], [0, -1, 2, 2**31, 2**63, True, "1"]),
    "prediction": ([None], [{"type": "content", "content": "x"}]),
    "reasoning_effort": ([None, "none"], ["low", "high"]),
    "response_format": (
        [None, {"type": "text"}],
        [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}],
    ),
    "service_tier": ([None, "auto", "default"], ["flex", "priority"]),
    "store": ([None, False], [True, 0]),
    "tool_choice": ([None, "none", "auto"], ["required", {"type": "function", "function": {"name": "f"}}]),
    "tools": ([None, []], [[{"type": "function", "function": {"name": "f"}}]]),
    "verbosity": ([None, "medium"], ["low", "high"]),
    "web_search_options": ([None], [{}]),
}


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **changes}


def accepted(**changes: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps(request(**changes)).encode())


def refused(**changes: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        accepted(**changes)
    return caught.value


def test_every_field_of_the_sdk_has_been_decided() -> None:
    fields = {*params.CompletionCreateParamsBase.__annotations__, "stream"}
    assert fields == ACT | EFFECTLESS.keys() | NEUTRAL.keys()
    assert ChatRequest.model_fields.keys() == fields | ACT_OF_OURS


@pytest.mark.parametrize(("field", "value"), EFFECTLESS.items())
def test_what_has_no_effect_passes(field: str, value: Any) -> None:
    accepted(**{field: value})
    accepted(**{field: None})


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, (values, _) in NEUTRAL.items() for v in values])
def test_neutral_values_pass(field: str, value: Any) -> None:
    accepted(**{field: value})


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, (_, values) in NEUTRAL.items() for v in values])
def test_what_would_change_the_answer_is_refused_by_name(field: str, value: Any) -> None:
    error = refused(**{field: value})
    assert (error.param, error.code) == (field, "unsupported_parameter")
    assert field in error.message
    assert json.dumps(value)[:50] in error.message


def test_an_unknown_field_is_named() -> None:
    error = refused(foo=1)
    assert error.message == "Unrecognized request argument supplied: foo"
    assert (error.param, error.code) == ("foo", "unknown_parameter")


HUGE = [2**31, 2**63, 2**70]
BOUNDS: dict[str, tuple[list[Any], list[Any]]] = {
    "temperature": ([0, 0.0, 1e-9, 2, None], [-1e-9, 2.001, -1, 2**63, "1", True, [], {}]),
    "top_p": ([1e-9, 1, 1.0, None], [0, -0.1, 1.001, 2**63, "1", True]),
    "min_p": ([0, 1, None], [-0.1, 1.1, "0"]),
    "top_k": ([-1, 0, 1, 2**31 - 1, None], [-2, 1.5, "1", True, *HUGE]),
    "seed": ([-(2**63), -1, 0, 2**63 - 1, None], [2**63, -(2**63) - 1, 0.5, "1", True]),
    "logprobs": ([True, False, None], [1, "true", 0]),
    "max_tokens": ([1, 2**31 - 1, None], [0, -1, 1.5, "1", True, *HUGE]),
    "max_completion_tokens": ([1, 2**31 - 1, None], [0, -1, 1.5, "1", True, *HUGE]),
    "ignore_eos": ([True, False, None], [1, "yes"]),
    "stream": ([True, False, None], [1, "true"]),
    "stop": (["x", ["x"], ["x"] * 16, [], None], ["", [""], ["x"] * 17, [1], 1, {}, "x" * 1025]),
    "model": (["m"], [None, 1, "", []]),
    "user": (["", None], [1, {}]),
    "metadata": ([{}, None], [{"a": 1}, [], "x"]),
    "messages": ([[{"role": "user", "content": ""}]], [None, [], {}, "hi", ["hi"], [None], [{}], [[]]]),
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, (values, _) in BOUNDS.items() for v in values])
def test_within_the_bounds(field: str, value: Any) -> None:
    accepted(**{field: value})


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, (_, values) in BOUNDS.items() for v in values])
def test_outside_of_the_bounds(field: str, value: Any) -> None:
    error = refused(**{field: value})
    assert error.param is not None
    assert re.split(r"[\[.]", error.param)[0] == field
    assert field in error.message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize(
    "field", ["temperature", "top_p", "min_p", "seed", "max_tokens", "n", "frequency_penalty", "foo"]
)
def test_no_number_may_be_nan_or_infinite(field: str, number: str) -> None:
    body = json.dumps(request(**{field: "@"})).replace('"@"', number)
    with pytest.raises(BadRequest) as caught:
        parse(ChatRequest, body.encode())
    assert caught.value.param == field


def test_top_logprobs_needs_logprobs() -> None:
    assert accepted(logprobs=True, top_logprobs=20).top_logprobs == 20
    accepted(top_logprobs=0)
    assert refused(top_logprobs=5).param == "top_logprobs"
    assert refused(logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert refused(logprobs=True, top_logprobs=-1).param == "top_logprobs"


def test_stream_options_need_a_stream() -> None:
    assert accepted(stream=True, stream_options={"include_usage": True}).wants_usage
    assert not accepted(stream=True, stream_options={"include_usage": False}).wants_usage
    accepted(stream_options=None)
    assert refused(stream_options={"include_usage": True}).param == "stream_options"
    assert (
        refused(stream=True, stream_options={"include_obfuscation": True}).param == "stream_options.include_obfuscation"
    )
    assert refused(stream=True, stream_options={"foo": True}).param == "stream_options.foo"


def test_the_answer_has_one_limit() -> None:
    assert accepted(max_tokens=5).output_limit == 5
    assert accepted(max_completion_tokens=6).output_limit == 6
    assert accepted(max_tokens=7, max_completion_tokens=7).output_limit == 7
    assert accepted().output_limit is None
    assert "5" in refused(max_tokens=5, max_completion_tokens=6).message


IMAGE = {"type": "image_url", "image_url": {"url": "data:,x"}}


def test_all_forms_of_an_image_arrive_with_their_path_and_budget() -> None:
    parts = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "u0", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "u1", "detail": "high"}},
        {"type": "image_url", "image_url": "u2"},
        {"type": "image", "image": "u3"},
        {"type": "text", "text": "now", "prompt_cache_breakpoint": {"mode": "explicit"}},
    ]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    system, user = to_prompt(accepted(messages=messages), 77)
    assert (system.role, system.parts) == ("system", (TextPart("be brief"),))
    at = "messages[1].content"
    assert user.parts == (
        TextPart("see"),
        ImagePart("u0", ImageBudget(LOW_DETAIL_PIXELS, 77), f"{at}[1].image_url"),
        ImagePart("u1", ImageBudget(None, 77), f"{at}[2].image_url"),
        ImagePart("u2", ImageBudget(None, 77), f"{at}[3].image_url"),
        ImagePart("u3", ImageBudget(None, 77), f"{at}[4].image"),
        TextPart("now"),
    )


def test_pixels_of_an_image_go_before_the_requests_and_both_before_detail() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "u", "detail": "low", "max_pixels": 5000}},
        {"type": "image_url", "image_url": {"url": "u", "detail": "low"}},
        {"type": "image", "image": "u"},
    ]
    request = accepted(messages=[{"role": "user", "content": parts}], mm_processor_kwargs={"max_pixels": 9000})
    (user,) = to_prompt(request, None)
    assert [(part.budget.max_pixels, part.demanded) for part in user.parts] == [
        (5000, True),
        (9000, True),
        (9000, True),
    ]


USER = {"role": "user", "content": "hi"}
WRONG_MESSAGES: list[tuple[list[Any], str]] = [
    ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0].role"),
    ([{"role": "function", "content": "x", "name": "f"}], "messages[0].role"),
    ([{"role": "User", "content": "x"}], "messages[0].role"),
    ([{"role": 1, "content": "x"}], "messages[0].role"),
    ([{"content": "x"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": None}], "messages[0].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([USER, {"role": "user", "content": "x", "name": "bob"}], "messages[1].name"),
    ([{"role": "user", "content": "x", "foo": 1}], "messages[0].foo"),
    ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": [{"type": "text", "text": None}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": [{"type": "text", "text": "x", "image": "u"}]}], "messages[0].content[0].image"),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].image_url"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].image_url.url"),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "x"}}]}],
        "messages[0].content[0].image_url.detail",
    ),
    ([{"role": "system", "content": [IMAGE]}, USER], "messages[0].content[0].type"),
    ([USER, {"role": "assistant", "content": [IMAGE]}, USER], "messages[1].content[0].type"),
    ([USER, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, USER], "messages[1].tool_calls"),
    ([USER, {"role": "assistant", "content": "x", "refusal": "no"}, USER], "messages[1].refusal"),
    ([USER, {"role": "assistant", "content": "x", "function_call": {"name": "f"}}, USER], "messages[1].function_call"),
    ([USER, {"role": "assistant", "content": "x", "audio": {"id": "a"}}, USER], "messages[1].audio"),
    ([USER, {"role": "assistant", "content": "and"}], "messages[1].role"),
]


@pytest.mark.parametrize(("messages", "param"), WRONG_MESSAGES)
def test_a_wrong_message_is_refused_at_its_place(messages: list[Any], param: str) -> None:
    error = refused(messages=messages)
    assert error.param == param
    assert param in error.message


def test_an_answer_can_be_sent_back_as_the_sdk_gives_it() -> None:
    for answer in (
        sdk.ChatCompletionMessage(role="assistant", content="hello").to_dict(),
        sdk.ChatCompletionMessage(role="assistant", content="hello").model_dump(),
        {"role": "assistant", "content": "x", "annotations": [], "tool_calls": [], "refusal": None},
    ):
        accepted(messages=[USER, answer, USER])
