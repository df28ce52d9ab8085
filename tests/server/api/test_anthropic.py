"""/v1/messages in front of a fake engine, asked by Anthropic's own SDK."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_type_hints

import anthropic
import httpx
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_params
from fake_engine import FakeEngine, Script
from running_server import RunningServer

from opsin_server.api.routes.read_body import parse
from opsin_server.api.schemas.messages_chat import to_chat
from opsin_server.api.schemas.messages_request import CountTokensRequest, MessagesRequest
from opsin_server.errors import BadRequest
from opsin_server.text.reasoning import ReasoningFormat
from opsin_server.text.tool_format import SPELLED
from support.served import PLAIN
from support.talk import png, sample

HI: Any = {"model": "opsin-test", "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]}
GIVEN: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
CALL: Any = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1}}
TOOL: Any = {"name": "look", "input_schema": {"type": "object"}}


def sdk(server: RunningServer, **options: Any) -> anthropic.Anthropic:
    http = anthropic.DefaultHttpxClient(base_url=server.url, **PLAIN)
    return anthropic.Anthropic(
        base_url=server.url, http_client=http, **{"api_key": "none", "max_retries": 0, "timeout": 20.0, **options}
    )


@pytest.fixture
def http(plain: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=plain.url, headers={"anthropic-version": "2023-06-01"}, **PLAIN) as client:
        yield client


@pytest.mark.parametrize(
    ("said", "options", "ending"),
    [
        (Script(b"hello", cached=1), {}, ("hello", "end_turn", None)),
        (Script(b"hello"), {"max_tokens": 2}, ("he", "max_tokens", None)),
        (Script(b"hello"), {"stop_sequences": ["xx", "lo", "l"]}, ("he", "stop_sequence", "l")),
    ],
)
def test_an_answer_whole_and_streamed(start: Any, said: Script, options: Any, ending: Any) -> None:
    client = sdk(start(said))
    whole = client.messages.create(**{**HI, **options})
    with client.messages.stream(**{**HI, **options}) as stream:
        events = [event.type for event in stream if event.type != "text"]
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert (answer.content[0].text, answer.stop_reason, answer.stop_sequence) == ending
        assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens) == (2 - said.cached, said.cached)
        assert answer.id.startswith("msg_")
    assert whole.usage.output_tokens == streamed.usage.output_tokens > 0
    assert whole._request_id
    assert events[:2] == ["message_start", "content_block_start"]
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_thoughts_are_blocks_of_their_own(start: Any) -> None:
    server = start(Script(b"<think>hm</think>A cat."))
    server.services.encoder.reasoning = ReasoningFormat("<think>", "</think>")
    client, request = sdk(server), {**HI, "max_tokens": 50}
    with client.messages.stream(**request) as stream:
        answers = client.messages.create(**request), stream.get_final_message()
    for answer in answers:
        assert [block.type for block in answer.content] == ["thinking", "text"]
        assert (answer.content[0].thinking, answer.content[1].text) == ("hm", "A cat.")


@pytest.mark.parametrize("input_", [b'{"at": "x', b'{"at" "x"}}'])
def test_what_is_no_call_is_not_called_one(start: Any, input_: bytes) -> None:
    server = start(Script(b'<tool_call>\n{"name": "look", "arguments": ' + input_))
    server.services.encoder.template = SimpleNamespace(tools=SimpleNamespace(format=SPELLED))
    request = {**HI, "max_tokens": 90, "tools": [TOOL]}
    whole = sdk(server).messages.create(**request)
    assert (whole.stop_reason, whole.content) == ("end_turn", [])
    events = list(sdk(server).messages.create(**request, stream=True))
    assert [event.delta.stop_reason for event in events if event.type == "message_delta"] == ["end_turn"]


def test_errors_are_in_anthropics_shape(start: Any) -> None:
    server = start(api_keys=("secret",))
    with pytest.raises(anthropic.AuthenticationError) as refused:
        sdk(server).messages.create(**HI)
    body: Any = refused.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
    assert body["request_id"] == refused.value.request_id
    client = sdk(server, api_key="secret")
    assert client.messages.create(**HI).content[0].text == "hello"
    assert sdk(server, api_key=None, auth_token="secret").messages.create(**HI).content[0].text == "hello"
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.create(**{**HI, "model": "claude"})
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**{**HI, "max_tokens": 999})
    server.engine.state = "restarting"
    with pytest.raises(anthropic.APIStatusError, match="overloaded_error") as busy:
        client.messages.create(**HI)
    assert busy.value.status_code == 503
    server.engine.state = "ready"


def test_what_has_no_form_of_anthropics_is_not_there(plain: RunningServer, http: httpx.Client) -> None:
    client = sdk(plain)
    for call in (
        client.beta.files.list,
        lambda: client.beta.files.retrieve_metadata("file-x"),
        lambda: client.beta.files.upload(file=b"x"),
        lambda: client.beta.files.download("file-x"),
    ):
        with pytest.raises(anthropic.NotFoundError, match="not served in the form of Anthropic's API") as refused:
            call()
        assert refused.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    assert http.get("/v1/files", headers={"anthropic-version": ""}).status_code == 404
    assert http.get("/health/live").status_code == 200


def test_a_stream_whose_engine_dies_ends_in_an_error_event(start: Any) -> None:
    client = sdk(start(FakeEngine(Script(b"abc", die_after=2, delay=0.01))))
    seen: list[str] = []
    with pytest.raises(anthropic.APIStatusError, match="engine stopped"), client.messages.stream(**HI) as stream:
        seen.extend(event.type for event in stream)
    assert "content_block_delta" in seen
    assert "message_stop" not in seen


def test_an_image_that_is_refused_is_named_where_the_client_wrote_it(plain: RunningServer) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "x"}, image]}
    turns = [*HI["messages"], {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [result]}]
    with pytest.raises(anthropic.BadRequestError) as refused:
        sdk(plain).messages.create(**{**HI, "system": "Look.", "messages": turns})
    assert "messages[2].content[0].content[1].source" in refused.value.body["error"]["message"]


def test_tokens_are_counted_and_models_listed(plain: RunningServer, http: httpx.Client) -> None:
    client = sdk(plain)
    data = base64.b64encode(png(sample("cat.png"))).decode()
    picture: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    counted = client.messages.count_tokens(
        model="opsin-test",
        system="ab",
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}, picture]}],
    )
    assert counted.input_tokens == 2 + 2 + 4
    assert not plain.engine.streams
    assert [(model.id, model.type) for model in client.models.list(limit=1)] == [
        ("opsin-test", "model"),
        ("gpt-4o-2024-08-06", "model"),
    ]
    page = client.models.list(before_id="gpt-4o-2024-08-06")
    assert (page.first_id, page.last_id, page.has_more) == ("opsin-test", "opsin-test", False)
    assert client.models.retrieve("opsin-test").max_input_tokens == 1000
    refused = http.get("/v1/models", params={"limit": 0})
    assert (refused.status_code, "from 1 to 1,000" in refused.text) == (400, True)
    assert http.get("/v1/models", params={"after_id": "?"}).json()["error"]["type"] == "invalid_request_error"
    assert plain.client().models.list().data[0].object == "model"


def test_every_field_of_the_sdk_has_been_decided() -> None:
    """A field of the SDK that is none of the request's would be refused as unknown."""
    create = {*get_type_hints(message_create_params.MessageCreateParamsBase), "stream"}
    beta = {*get_type_hints(beta_params.MessageCreateParamsBase)} - {"betas"}  # (which the SDK sends as a header)
    assert create | beta <= MessagesRequest.model_fields.keys()
    assert {*get_type_hints(message_count_tokens_params.MessageCountTokensParams)} <= (
        CountTokensRequest.model_fields.keys()
    )


def turns(*contents: Any) -> list[Any]:
    """By the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def test_a_request_is_the_chat_request_that_asks_for_the_same() -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "gone", "is_error": True}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    url = {"type": "image", "source": {"type": "url", "url": "http://host/a.png"}, "cache_control": {"type": "x"}}
    given = {
        "model": "m",
        "max_tokens": 5,
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": turns("hi", [thought, {"type": "text", "text": "I look."}, CALL], [result, url], "It is"),
        "tools": [{**TOOL, "type": "custom", "strict": True}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "stop_sequences": ["END"],
        "temperature": 0,
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "metadata": {"user_id": "u"},
        "thinking": {"type": "disabled"},
    }
    chat, _ = to_chat(parse(MessagesRequest, json.dumps(given).encode()))
    found = chat.model_dump(exclude_unset=True, exclude_none=True, exclude_defaults=True, by_alias=True)
    call = {"id": "toolu_1", "function": {"name": "look", "arguments": '{"at": 1}'}}
    assert found["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "Error: gone", "tool_call_id": "toolu_1"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://host/a.png"}}]},
        {"role": "assistant", "content": "It is"},
    ]
    assert found["chat_template_kwargs"] == {"enable_thinking": False}
    assert found["continue_final_message"] is True
    assert found["tools"] == [
        {"type": "function", "function": {"name": "look", "parameters": TOOL["input_schema"], "strict": True}}
    ]
    assert (found["tool_choice"], found["parallel_tool_calls"]) == ("auto", False)
    assert (found["stop"], found["max_tokens"], found["temperature"]) == (["END"], 5, 0)
    assert found["response_format"]["json_schema"] == {"schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"temperature": 1.5}, "temperature"),
        ({"messages": turns(None)}, "messages[0].content"),
        ({"messages": turns([])}, "messages[0].content"),
        ({"messages": turns([{"type": "document"}])}, "messages[0].content[0].type"),
        ({"messages": turns([{"type": "text"}])}, "messages[0].content[0].text"),
        ({"messages": turns([{"type": "text", "text": "x", "source": None, "id": "y"}])}, "messages[0].content[0].id"),
        ({"messages": turns([CALL])}, "messages[0].content[0].type"),
        ({"messages": turns("hi", [CALL])}, "messages"),
        ({"messages": turns("hi", [CALL], "so?")}, "messages[1].content"),
        ({"messages": turns("hi", [CALL, {**CALL, "id": "b"}], [GIVEN], "x", "y")}, "messages[1].content"),
        ({"messages": turns("hi", [CALL], [GIVEN, GIVEN])}, "messages[2].content[1].tool_use_id"),
        ({"messages": turns([{"type": "tool_result", "tool_use_id": "x"}])}, "messages[0].content[0].tool_use_id"),
        ({"messages": turns([{"type": "image", "source": {"type": "url"}}])}, "messages[0].content[0].source.url"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(change: Any, param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(MessagesRequest, json.dumps({**HI, **change}).encode())
    assert refused.value.param == param
