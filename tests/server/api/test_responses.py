"""/v1/responses as OpenAI's strict SDK reads it: what a body may hold, the order of events, and how answers end."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine, Script
from openai.types.responses import response_create_params as params
from running_server import RunningServer

from opsin_server.api.routes.read_body import parse
from opsin_server.api.schemas.responses import ResponsesRequest
from opsin_server.api.schemas.responses_chat import chat_form
from opsin_server.api.schemas.responses_items import InputItem
from opsin_server.chat.fields import Ignored
from opsin_server.errors import BadRequest
from opsin_server.text.reasoning import ReasoningFormat
from opsin_server.text.tool_format import SPELLED

ASK: dict[str, Any] = {"model": "opsin-test", "input": "hi"}
BEGIN = ["created", "in_progress", "output_item.added", "content_part.added"]
END = ["output_text.done", "content_part.done", "output_item.done"]
USER = {"role": "user", "content": "hi"}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
FILE = {"type": "input_file", "file_data": "data:image/png;base64,AAAA"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}

SECOND_CALL = {**CALL, "call_id": "c2"}
RESULT = {"type": "function_call_output", "call_id": "c2", "output": "x"}


def strict(server: RunningServer) -> openai.OpenAI:
    return server.client(_strict_response_validation=True)


def streamed(server: RunningServer, **options: Any) -> list[Any]:
    events = list(strict(server).responses.create(**ASK, stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def kinds(events: list[Any]) -> list[str]:
    return [event.type.removeprefix("response.") for event in events]


def test_every_field_of_the_sdk_has_been_decided() -> None:
    fields = {*params.ResponseCreateParamsBase.__annotations__, "stream"}
    assert ResponsesRequest.model_fields.keys() == fields


def test_a_stream_has_the_events_in_their_order_and_ends_with_the_whole_answer(plain: RunningServer) -> None:
    asked: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "metadata": {"a": "b"}}
    events = streamed(plain, **asked)
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds(events) == [*BEGIN, *["output_text.delta"] * len(deltas), *END, "completed"]
    assert "".join(event.delta for event in deltas) == "hello"
    assert sum(len(event.logprobs) for event in deltas) == 5
    first, last = events[0].response, events[-1].response
    assert (first.status, first.output, first.usage) == ("in_progress", [], None)
    assert (last.status, last.output_text, last.metadata) == ("completed", "hello", {"a": "b"})
    assert last.output[0] == events[-2].item
    assert len(last.output[0].content[0].logprobs[0].top_logprobs) == 2
    whole = strict(plain).responses.create(**ASK, **asked)
    own = {"id", "created_at", "completed_at"}
    said = [json.loads(one.to_json()) for one in (whole, last)]
    for one in said:
        assert one["output"][0].pop("id").startswith("msg_")
    assert {k: v for k, v in said[0].items() if k not in own} == {k: v for k, v in said[1].items() if k not in own}


def test_thoughts_are_an_item_of_their_own_which_goes_into_the_next_request(start: Any) -> None:
    server = start(FakeEngine(Script(b"<think>hm</think>hello")))
    server.services.encoder.reasoning = ReasoningFormat("<think>", "</think>")
    events = streamed(server)
    said = [kind for kind in kinds(events) if "delta" not in kind]
    assert said == [
        *BEGIN, "reasoning_text.done", "content_part.done", "output_item.done", *BEGIN[2:], *END, "completed",
    ]  # fmt: skip
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "hm"
    thought, answer = events[-1].response.output
    assert (thought.type, thought.content[0].text, answer.content[0].text) == ("reasoning", "hm", "hello")
    items = [InputItem.model_validate(item.to_dict()) for item in (thought, answer)]
    assert chat_form([(item, "input") for item in items], None).messages == [
        {"role": "assistant", "content": [{"type": "text", "text": "hello"}], "reasoning_content": "hm"}
    ]


def test_an_answer_that_is_cut_off_is_incomplete(plain: RunningServer) -> None:
    events = streamed(plain, max_output_tokens=3)
    assert kinds(events)[-4:] == [*END, "incomplete"]
    last = events[-1].response
    assert (last.status, last.incomplete_details.reason, last.output_text) == ("incomplete", "max_output_tokens", "hel")
    assert last.output[0].status == "incomplete"


def test_a_call_that_the_answers_end_cuts_is_an_incomplete_item(start: Any) -> None:
    server = start(Script(b'<tool_call>\n{"name": "f", "arguments": {"a": "b'))
    server.services.encoder.template = SimpleNamespace(tools=SimpleNamespace(format=SPELLED))
    tool: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
    response = streamed(server, tools=[tool], max_output_tokens=90)[-1].response
    (item,) = response.output
    assert (response.status, item.type, item.status, item.arguments) == (
        "completed", "function_call", "incomplete", '{"a": "b',
    )  # fmt: skip


def test_an_answer_without_a_word_is_an_empty_message(start: Any) -> None:
    server = start(FakeEngine(Script(b"")))
    assert kinds(streamed(server)) == [*BEGIN, *END, "completed"]


def test_a_failure_within_a_stream_is_its_last_event_and_a_proper_end(start: Any) -> None:
    server = start(FakeEngine(Script(b"hello", die_after=3)))
    events = streamed(server)  # (a body that breaks off would raise)
    assert kinds(events)[-2:] == ["error", "failed"]
    assert events[-2].code == "engine_failed"
    assert (events[-1].response.status, events[-1].response.error.code) == ("failed", "server_error")
    assert "engine stopped" in events[-1].response.error.message
    with pytest.raises(openai.InternalServerError, match="engine stopped"):
        strict(server).responses.create(**ASK)


def refused(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(ResponsesRequest, json.dumps({**ASK, **fields}).encode())
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"input": [{"type": "computer_call", "id": "cu_1"}]}, "input[0].type"),
        ({"input": [USER, {"role": "assistant", "content": "x"}]}, "input[1]"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x/y"}]}]},
            "input[0].content[0].file_url",
        ),
    ],
)
def test_what_would_change_an_answer_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert (error.param, error.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [USER, {**CALL, "arguments": "["}, USER]}, "input[1].arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": [{**IMAGE, "text": "x"}]}]}, "input[0].content[0].text"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"foo": 1}, "foo"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_its_path(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input[0].id"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0].call_id"),
        ({"input": [USER, SECOND_CALL, {**RESULT, "output": [IMAGE]}]}, "input[2].output[0].image_url"),
        ({"input": [{"role": "user", "content": [FILE]}]}, "input[0].content[0].file_data"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "y"}}}}, "text.format.schema"),
    ],
)  # fmt: skip
def test_what_the_chat_behind_it_refuses_has_the_names_of_the_request(
    plain: RunningServer, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        plain.client().responses.create(**{**ASK, **fields})
    assert caught.value.param == param
    assert "--store" in caught.value.message or not {"store", "previous_response_id"} & fields.keys()


def test_a_call_without_a_result_is_refused_and_what_stands_between_them_is_not(plain: RunningServer) -> None:
    client = plain.client()
    between: list[Any] = [USER, CALL, {"role": "assistant", "content": "I look."}, USER, SECOND_CALL, RESULT]
    assert client.responses.create(**{**ASK, "input": [*between, {**RESULT, "call_id": "c1"}]}).output_text == "hello"
    with pytest.raises(openai.BadRequestError, match=r"- No tool output found for function call c1\.") as caught:
        client.responses.create(**{**ASK, "input": between})
    assert caught.value.param == "input"


def test_what_is_left_out_is_the_served_model_and_an_empty_message(plain: RunningServer) -> None:
    client = strict(plain)
    answer = client.responses.create()
    assert (answer.model, answer.output_text) == ("opsin-test", "hello")
    assert answer.usage is not None
    assert client.responses.input_tokens.count().input_tokens == answer.usage.input_tokens == 0
    asked: Any = {"input": "hi", "instructions": "Be short."}
    answer = client.responses.create(**asked)
    assert answer.usage is not None
    assert client.responses.input_tokens.count(**asked).input_tokens == answer.usage.input_tokens > 2
    with pytest.raises(openai.BadRequestError, match="personality"):
        client.responses.input_tokens.count(**asked, personality="friendly")


def test_padding_hides_how_long_deltas_are(plain: RunningServer) -> None:
    deltas = [
        event for event in streamed(plain, stream_options={"include_obfuscation": True}) if hasattr(event, "delta")
    ]
    assert {len(event.delta) + len(event.obfuscation) for event in deltas} == {32}


def test_without_a_store_nothing_is_kept(plain: RunningServer) -> None:
    answer = plain.client().responses.create(**ASK)
    assert json.loads(answer.to_json())["store"] is False
    with pytest.raises(openai.NotFoundError, match="--store"):
        plain.client().responses.retrieve(answer.id)


def test_fields_that_are_ignored_pass_whatever_they_hold() -> None:
    names = [name for name, field in ResponsesRequest.model_fields.items() if field.metadata == [*Ignored.__metadata__]]
    assert {"user", "safety_identifier", "prompt_cache_key"} <= set(names)
    for name in names:
        parse(ResponsesRequest, json.dumps({**ASK, name: [{"a": 1}]}).encode())
