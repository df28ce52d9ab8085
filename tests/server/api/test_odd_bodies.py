"""Bodies that are nearly JSON: numbers that it does not have, other encodings, depth; each in words."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest
from running_server import PLAIN

from opsin_server.api.routes.read_body import parse
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.api.schemas.graders import RunGrader
from opsin_server.api.schemas.messages_request import CountTokensRequest
from opsin_server.api.schemas.responses import ResponsesRequest
from opsin_server.errors import BadRequest

USER = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"model": "opsin-test", "messages": [USER]}
INFINITE = "9" * 400


def schema(number: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"minimum": number}}}


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": NUMBER}'}}
USED = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "NUMBER"}}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "x"}
USED_RESULT = {"type": "tool_result", "tool_use_id": "c"}
GRADER = {"type": "string_check", "name": "g", "input": "a", "reference": "a", "operation": "eq"}


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", INFINITE], ids=["nan", "infinity", "1e999", "whole"])
@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        (
            ChatRequest,
            CHAT | {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema("NUMBER")}}]},
            "tools[0].function.parameters.properties.a.minimum",
        ),
        (
            ChatRequest,
            CHAT | {"guided_json": {"enum": [1, "NUMBER"]}},
            "guided_json.enum[1]",
        ),
        (
            ChatRequest,
            CHAT | {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            CountTokensRequest,
            CHAT
            | {
                "messages": [USER, {"role": "assistant", "content": [USED]}, {"role": "user", "content": [USED_RESULT]}]
            },
            "messages[1].content[0].input.a",
        ),
        (
            ResponsesRequest,
            {"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": schema("NUMBER")}]},
            "tools[0].parameters.properties.a.minimum",
        ),
        (RunGrader, {"grader": GRADER, "model_sample": "a", "item": {"a": ["NUMBER"]}}, "item.a[0]"),
    ],
    ids=["tools", "guided", "arguments", "tool use", "responses", "item"],
)
def test_numbers_that_json_does_not_have_are_refused_by_name(
    model: Any, body: dict[str, Any], param: str, number: str
) -> None:
    text = json.dumps(body)
    with pytest.raises(BadRequest) as caught:
        parse(model, text.replace('"NUMBER"', number).replace("NUMBER", number).encode())
    assert caught.value.param == param
    assert caught.value.message.endswith("it must not hold NaN or infinity, which are not JSON")
    parse(model, text.replace('"NUMBER"', "1e3").replace("NUMBER", "-1.5").encode())


HELLO = json.dumps(CHAT).encode()


@pytest.mark.parametrize(
    ("body", "encoding", "words"),
    [
        (HELLO.decode().encode("utf-16"), None, "UTF-16"),
        (HELLO.decode().encode("utf-16-be"), None, "UTF-16"),
        (HELLO.replace(b"hi", b"\xff"), None, "it is not UTF-8 at line 1"),
        (HELLO.replace(b"hi", b"\\ud800"), None, "half of a surrogate pair"),
        (b'{"messages": ' + b"[" * 300 + b"]" * 300 + b"}", None, "nested too deeply"),
        (gzip.compress(HELLO), "gzip", "without a content encoding (gzip)"),
    ],
    ids=["utf-16", "utf-16-be", "latin-1", "surrogate", "deep", "gzip"],
)
def test_what_a_body_is_instead_is_said(plain: Any, body: bytes, encoding: str | None, words: str) -> None:
    headers = {"content-type": "application/json"} | ({} if encoding is None else {"content-encoding": encoding})
    answer = httpx.post(f"{plain.url}/v1/chat/completions", content=body, headers=headers, **PLAIN)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_byte_order_mark_is_passed_over(plain: Any) -> None:
    headers = {"content-type": "application/json", "content-encoding": "identity"}
    answer = httpx.post(f"{plain.url}/v1/chat/completions", content=b"\xef\xbb\xbf" + HELLO, headers=headers, **PLAIN)
    assert answer.status_code == 200


def test_a_conversation_to_tokenize_is_told_of_its_own_fault(plain: Any) -> None:
    body = json.dumps({"messages": [USER], "temperature": 7}).replace("7", "NaN").encode()
    answer = httpx.post(f"{plain.url}/tokenize", content=body, headers={"content-type": "application/json"}, **PLAIN)
    assert answer.json()["error"]["param"] == "temperature"


def test_as_many_tokens_as_are_said_become_text(plain: Any) -> None:
    for count, status in ((100_000, 200), (100_001, 400)):
        answer = httpx.post(f"{plain.url}/detokenize", json={"tokens": [97] * count}, **PLAIN)
        assert answer.status_code == status
    assert answer.json()["error"]["param"] == "tokens"


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_tools_schema_is_one_also_where_no_call_is_held_to_it(plain: Any, choice: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": 5}}}]
    answer = httpx.post(
        f"{plain.url}/v1/chat/completions", json=CHAT | {"tools": tools, "tool_choice": choice}, **PLAIN
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools[0].function.parameters"


def test_input_that_is_neither_a_string_nor_items_is_told_what_it_may_be() -> None:
    with pytest.raises(BadRequest, match="a string or a list of items"):
        parse(ResponsesRequest, b'{"input": 5}')
