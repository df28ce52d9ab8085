"""Every field of a chat request acts, passes because it changes nothing, or is refused by name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from openai.types.chat import completion_create_params as params
from pydantic import BaseModel
from wire_requests import USER, accepted, refused, request

from opsin_plugins.spec import ImageBudget
from opsin_server.api.answer.submit import to_prompt
from opsin_server.api.routes.read_body import parse
from opsin_server.api.schemas.chat_request import ChatRequest, DeploymentRequest, ProcessorOptions
from opsin_server.api.schemas.dialects import Dialects
from opsin_server.api.schemas.sampling_fields import StreamOptions
from opsin_server.chat.messages import ChatMessage, ContentPart, ImageURL
from opsin_server.errors import BadRequest
from opsin_server.text.conversation import ImagePart, TextPart

ACT = {"model", "messages", "logprobs", "max_completion_tokens", "max_tokens", "seed", "stop", "stream"} | {
    "stream_options", "temperature", "n", "response_format", "frequency_penalty", "presence_penalty", "logit_bias",
    "top_logprobs", "top_p", "tools", "tool_choice", "parallel_tool_calls", "store", "metadata",
}  # fmt: skip
ACT_OF_OURS = {"top_k", "min_p", "repetition_penalty", "ignore_eos", "priority", "mm_processor_kwargs"} | {
    "continue_final_message", "add_generation_prompt", "min_tokens", "stop_token_ids", "structured_outputs",
    "chat_template_kwargs", "media_io_kwargs", "prompt_logprobs",
}  # fmt: skip
GUIDED = {f"guided_{name}" for name in ("json", "regex", "choice", "grammar", "whitespace_pattern", "decoding_backend")}
IGNORED: dict[str, Any] = {
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "key",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "someone",
    "user": "someone",
}
IGNORED_DIALECTS: dict[str, Any] = {
    "cache_control": {"type": "ephemeral"},
    "cache_prompt": True,
    "chat_id": "7301",
    "id": "7301",
    "id_slot": -1,
    "keep_alive": "5m",
    "request_id": "7301",
    "rid": "7301",
    "separate_reasoning": True,
    "session_id": "7301",
    "spaces_between_special_tokens": True,
    "stream_reasoning": True,
}
# field: (values that change nothing, values that would)
NEUTRAL: dict[str, tuple[list[Any], list[Any]]] = {
    "audio": ([None], [{"voice": "alloy", "format": "wav"}]),
    "function_call": ([None, "none", "auto"], [{"name": "f"}]),
    "functions": ([None, []], [[{"name": "f"}]]),
    "modalities": ([None, ["text"]], [["text", "audio"], "text", []]),
    "moderation": ([None], [{"model": "omni-moderation-latest"}]),
    "reasoning_effort": ([None, "none"], ["low", "high"]),
    "service_tier": ([None, "auto", "default"], ["flex", "priority"]),
    "verbosity": ([None, "medium"], ["low", "high"]),
    "web_search_options": ([None], [{}]),
}
NEUTRAL_DIALECTS: dict[str, tuple[list[Any], list[Any]]] = {
    "add_special_tokens": ([False], [True]),
    "bad_words": ([[]], [["no"]]),
    "best_of": ([1, 1.0], [2, True]),
    "documents": ([[]], [[{"text": "x"}]]),
    "dry_multiplier": ([0, 0.0], [0.8]),
    "dynatemp_range": ([0], [0.5]),
    "early_stopping": ([False], [True]),
    "echo": ([False], [True]),
    "epsilon_cutoff": ([0], [3]),
    "eta_cutoff": ([0], [3]),
    "extra_body": ([{}], [{"top_k": 1}]),
    "extra_headers": ([{}], [{"a": "b"}]),
    "extra_query": ([{}], [{"a": "b"}]),
    "format": ([""], ["json"]),
    "include_reasoning": ([True], [False]),
    "include_stop_str_in_output": ([False], [True]),
    "length_penalty": ([1, 1.0], [0.8]),
    "logits_processors": ([[]], [["x"]]),
    "mirostat": ([0], [2]),
    "mirostat_mode": ([0], [2]),
    "models": ([[]], [["a", "b"]]),
    "n_probs": ([0], [5]),
    "no_stop_trim": ([False], [True]),
    "options": ([{}], [{"num_ctx": 4096}]),
    "plugins": ([[]], [[{"id": "web"}]]),
    "provider": ([{}], [{"order": ["x"]}]),
    "reasoning": ([{}, {"effort": "none"}, {"enabled": False}], [{"effort": "high"}]),
    "repeat_penalty": ([1, 1.0], [1.1]),
    "return_hidden_states": ([False], [True]),
    "return_token_ids": ([False], [True]),
    "return_tokens_as_token_ids": ([False], [True]),
    "safe_prompt": ([False], [True]),
    "skip_special_tokens": ([True], [False]),
    "tfs_z": ([1], [0.9]),
    "thinking": ([{"type": "disabled"}], [{"type": "enabled"}]),
    "timings_per_token": ([False], [True]),
    "top_a": ([0], [0.1]),
    "transforms": ([[]], [["middle-out"]]),
    "typical_p": ([1, 1.0], [0.9]),
    "use_beam_search": ([False], [True]),
    "vllm_xargs": ([{}], [{"a": 1}]),
    "xtc_probability": ([0], [0.5]),
}
EVERY_NEUTRAL = NEUTRAL | NEUTRAL_DIALECTS


def test_every_field_of_the_sdk_has_been_decided() -> None:
    fields = {*params.CompletionCreateParamsBase.__annotations__, "stream"}
    assert fields == ACT | IGNORED.keys() | NEUTRAL.keys()
    assert Dialects.model_fields.keys() == IGNORED_DIALECTS.keys() | NEUTRAL_DIALECTS.keys()
    assert ChatRequest.model_fields.keys() == fields | ACT_OF_OURS | GUIDED | Dialects.model_fields.keys()


@pytest.mark.parametrize(("field", "value"), (IGNORED | IGNORED_DIALECTS).items())
def test_what_cannot_change_an_answer_is_ignored_whatever_it_holds(field: str, value: Any) -> None:
    plain = accepted()
    for anything in (value, None, 0, -1.5, "x", True, {"a": [{"b": None}]}, []):
        assert accepted(**{field: anything}) == plain


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, (values, _) in EVERY_NEUTRAL.items() for v in values])
def test_neutral_values_pass(field: str, value: Any) -> None:
    assert accepted(**{field: value}) == accepted()


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, (_, values) in EVERY_NEUTRAL.items() for v in values])
def test_what_would_change_the_answer_is_refused_by_name(field: str, value: Any) -> None:
    error = refused(**{field: value})
    assert (error.param, error.code) == (field, "unsupported_parameter")
    assert field in error.message
    assert json.dumps(value)[:50] in error.message


UNKNOWN = ["foo", "temprature", "guided_jsn", "cache_salt", "chat_template", "num_ctx", "model_config", "stop_regex"]


@pytest.mark.parametrize("field", UNKNOWN)
@pytest.mark.parametrize("value", [1, 0, False, "", [], {}, "x"])
def test_an_unknown_field_is_named(field: str, value: Any) -> None:
    error = refused(**{field: value})
    assert error.message == f"Unrecognized request argument supplied: {field}"
    assert (error.param, error.code) == (field, "unknown_parameter")


NEEDED = {"model", "messages"}
FIELDS = [*sorted(ChatRequest.model_fields.keys() - NEEDED), *UNKNOWN]


@pytest.mark.parametrize("field", FIELDS)
def test_null_is_a_field_that_was_left_out(field: str) -> None:
    given = accepted(**{field: None})
    assert all(getattr(given, name) == getattr(accepted(), name) for name in ChatRequest.model_fields)


def test_null_is_left_out_at_every_depth() -> None:
    def nulls(model: type[BaseModel], **given: Any) -> dict[str, Any]:
        return dict.fromkeys(model.model_fields) | {"foo": None} | given

    url = nulls(ImageURL, url="u")
    parts = [nulls(ContentPart, type="text", text="x"), nulls(ContentPart, type="image_url", image_url=url)]
    request = accepted(
        messages=[nulls(ChatMessage, role="user", content=parts)],
        stream=True,
        stream_options=nulls(StreamOptions),
        mm_processor_kwargs=nulls(ProcessorOptions),
    )
    (user,) = to_prompt(request, None)
    assert user.parts == (TextPart("x"), ImagePart("u", ImageBudget(), "messages[0].content[1].image_url"))


HUGE = [2**31, 2**63, 2**70]
BOUNDS: dict[str, tuple[list[Any], list[Any]]] = {
    "temperature": ([0, 0.0, 1e-9, 2, None], [-1e-9, 2.001, -1, 2**63, "1", True, [], {}]),
    "top_p": ([1e-9, 1, 1.0, None], [0, -0.1, 1.001, 2**63, "1", True]),
    "min_p": ([0, 1, None], [-0.1, 1.1, "0"]),
    "top_k": ([-1, 0, 1, 40.0, 2**31 - 1, None], [-2, 1.5, "1", True, *HUGE]),
    "seed": ([-(2**63), -1, 0, 7.0, 2**63 - 1, None], [2**63, -(2**63) - 1, 0.5, "1", True]),
    "logprobs": ([True, False, None], [1, "true", 0]),
    "max_tokens": ([1, 16.0, 2**31 - 1, None], [0, -1, 1.5, 1e300, "1", True, *HUGE]),
    "max_completion_tokens": ([1, 16.0, 2**31 - 1, None], [0, -1, 1.5, 1e300, "1", True, *HUGE]),
    "ignore_eos": ([True, False, None], [1, "yes"]),
    "priority": ([0, -1, 2**31 - 1, -(2**31), 5.0], [2**31, -(2**31) - 1, 0.5, "high", True]),
    "stream": ([True, False, None], [1, "true"]),
    "stop": (
        ["x", ["x"], ["x"] * 16, [], None, "", [""], ["", "x", ""]],
        [["x"] * 17, [1], [None], 1, 0, False, {}, "x" * 1025],
    ),
    "model": (["m"], [None, 1, "", []]),
    "continue_final_message": ([False, None], [True, 1, "yes"]),
    "add_generation_prompt": ([True, None], [False, 1, "yes"]),
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


def test_whole_numbers_may_have_a_point() -> None:
    given = accepted(max_tokens=16.0, top_k=40.0, seed=-7.0, logprobs=True, top_logprobs=3.0)
    numbers = (given.max_tokens, given.top_k, given.seed, given.top_logprobs)
    assert numbers == (16, 40, -7, 3)
    assert all(type(number) is int for number in numbers)
    given = accepted(mm_processor_kwargs={"max_pixels": 9000.0})
    assert given.mm_processor_kwargs is not None
    assert given.mm_processor_kwargs.max_pixels == 9000
    assert refused(seed=1.5).param == "seed"


def test_an_empty_stop_string_is_none() -> None:
    assert accepted(stop="").stop == []
    assert accepted(stop=["", "x", ""]).stop == ["x"]
    assert accepted(stop=[*[""] * 20, *["x"] * 16]).stop == ["x"] * 16


def test_stream_options_act_on_streams() -> None:
    assert accepted(stream=True, stream_options={"include_usage": True}).wants_usage
    assert not accepted(stream=True, stream_options={"include_usage": False}).wants_usage
    accepted(stream_options=None)
    for stream in (False, None):
        accepted(stream=stream, stream_options={"include_usage": True})
    for options, every in (
        ({"include_usage": True, "continuous_usage_stats": True}, True),
        ({"include_usage": True, "continuous_usage_stats": False}, False),
        ({"continuous_usage_stats": True}, False),
    ):
        assert accepted(stream=True, stream_options=options).wants_usage_in_every_chunk is every
    obfuscated = refused(stream=True, stream_options={"include_obfuscation": True})
    assert obfuscated.param == "stream_options.include_obfuscation"
    assert refused(stream=True, stream_options={"foo": True}).param == "stream_options.foo"


def test_the_answer_has_one_limit() -> None:
    assert accepted(max_tokens=5).output_limit == 5
    assert accepted(max_completion_tokens=6).output_limit == 6
    assert accepted(max_tokens=7, max_completion_tokens=7).output_limit == 7
    assert accepted().output_limit is None
    assert "5" in refused(max_tokens=5, max_completion_tokens=6).message


def test_the_last_message_may_be_continued() -> None:
    messages = [USER, {"role": "assistant", "content": "and"}]
    for more in ({}, {"add_generation_prompt": False}, {"add_generation_prompt": None}):
        accepted(messages=messages, continue_final_message=True, **more)
    both = refused(messages=messages, continue_final_message=True, add_generation_prompt=True)
    assert both.param == "add_generation_prompt"
    assert refused(messages=[USER], continue_final_message=True).param == "continue_final_message"
    alone = refused(messages=[USER], add_generation_prompt=False)
    assert (alone.param, alone.code) == ("add_generation_prompt", "unsupported_parameter")
    for more in ({}, {"continue_final_message": False}, {"add_generation_prompt": True}):
        assert refused(messages=messages, **more).param == "messages[1].role"


def test_azures_address_names_the_model() -> None:
    for model in ({}, {"model": None}, {"model": ""}, {"model": "gpt-4o"}):
        parse(DeploymentRequest, json.dumps({"messages": [USER], **model}).encode())
    with pytest.raises(BadRequest):
        parse(DeploymentRequest, json.dumps({"messages": [USER], "model": 5}).encode())


def test_an_error_names_the_field_as_it_was_written() -> None:
    error = refused(**{"~x": 1})
    assert (error.param, error.message) == ("~x", "Unrecognized request argument supplied: ~x")
    error = refused(messages=[{"role": "user", "content": [{"type": "text", "text": 1}]}])
    assert error.param == "messages[0].content[0].text"
    many = refused(logit_bias={str(token): 1 for token in range(1025)})
    assert many.message == "Invalid value for 'logit_bias': dictionary should have at most 1024 items"
    assert refused(temperature=2.5).message.endswith("less than or equal to 2, not 2.5")
    assert refused(max_tokens=-(10**40)).message.endswith(f", not -{10**38}")  # its first 40 characters
    body = json.dumps(request(user="@")).replace('"@"', "NaN")
    with pytest.raises(BadRequest, match=r"^Invalid value for 'user': it must not hold NaN or infinity"):
        parse(ChatRequest, body.encode())
