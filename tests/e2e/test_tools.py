"""Tools, through the real SDK: called because they must be, streamed, answered, and refused by name."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from support.served import Served
from support.talk import MODEL_NAME, image_part, sample, user

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "paint",
            "parameters": {
                "type": "object",
                "properties": {"colour": {"enum": ["red", "blue"]}, "coats": {"enum": [1, 2]}},
                "required": ["colour", "coats"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "stop"}},
]
PAINT: Any = {"type": "function", "function": {"name": "paint"}}


@pytest.fixture
def ask(client: openai.OpenAI):
    def ask(messages: Any, **options: Any) -> openai.types.chat.ChatCompletion:
        options = {"model": MODEL_NAME, "temperature": 0, "max_tokens": 150, "tools": TOOLS, **options}
        return client.chat.completions.create(messages=messages, **options)

    return ask


QUESTION = [user(sample("cat.png"), "Paint it.")]


def test_a_tool_that_must_be_called_and_what_follows(ask) -> None:
    choice = ask(QUESTION, tool_choice=PAINT).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "paint")
    arguments = json.loads(call.function.arguments)
    assert arguments["colour"] in ("red", "blue")
    assert arguments["coats"] in (1, 2)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Done."}
    after = ask([*QUESTION, choice.message.to_dict(), result], tool_choice="none", tools=TOOLS[:1])
    assert after.choices[0].message.content
    assert after.choices[0].message.tool_calls is None
    picture = {"role": "tool", "tool_call_id": call.id, "content": [image_part(sample("cat.png"))]}
    seen = ask([*QUESTION, choice.message.to_dict(), picture], tools=TOOLS[:1])
    assert seen.usage.prompt_tokens_details.image_tokens == 2 * 30


def test_streamed_calls_add_up(ask) -> None:
    whole = ask(QUESTION, tool_choice="required", parallel_tool_calls=False).choices[0].message.tool_calls
    found: dict[int, dict[str, str]] = {}
    finish = None
    for chunk in ask(QUESTION, tool_choice="required", parallel_tool_calls=False, stream=True):
        finish = chunk.choices[0].finish_reason or finish
        for delta in chunk.choices[0].delta.tool_calls or ():
            call = found.setdefault(delta.index, {"id": delta.id, "name": delta.function.name, "arguments": ""})
            call["arguments"] += delta.function.arguments or ""
            assert delta.id in (None, call["id"])
    assert finish == "tool_calls"
    assert [(call["name"], call["arguments"]) for call in found.values()] == [
        (call.function.name, call.function.arguments) for call in whole
    ]
    assert whole[0].id != found[0]["id"]


def test_a_call_that_a_stop_string_cuts_is_none(ask) -> None:
    options = {"tool_choice": "required", "parallel_tool_calls": False, "stop": ["red", "blue"]}
    choice = ask(QUESTION, **options, tools=TOOLS[:1]).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
    chunks = [chunk.choices[0] for chunk in ask(QUESTION, **options, tools=TOOLS[:1], stream=True)]
    assert chunks[-1].finish_reason == "stop"
    begun = [delta for chunk in chunks for delta in chunk.delta.tool_calls or ()]
    assert begun[0].function.name == "paint"
    length = ask(QUESTION, **options, tools=TOOLS[:1], max_tokens=12).choices[0]
    assert length.finish_reason == "length"


def test_a_free_answer_calls_nothing_or_keeps_to_a_strict_schema(ask) -> None:
    strict = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}]
    for tools in (TOOLS, strict):
        choice = ask(QUESTION, tools=tools, max_tokens=20).choices[0]
        assert choice.message.content
        assert choice.message.tool_calls is None


def test_the_sdk_reads_arguments_into_a_model(client: openai.OpenAI) -> None:
    from pydantic import BaseModel

    class paint(BaseModel):  # noqa: N801 (the name of the tool)
        coats: bool

    answer = client.chat.completions.parse(
        model=MODEL_NAME,
        messages=QUESTION,
        tools=[openai.pydantic_function_tool(paint)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=150,
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, paint)


WRONG = {"type": "function", "function": {"name": "wrong", "parameters": {"type": "object", "not": {}}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nowhere"}}}, "tool_choice.function.name"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name"),
        ({"tool_choice": "required", "tools": [{"function": {"name": "x", "parameters": {"type": 7}}}]}, "tools[0]"),
        ({"tool_choice": "required", "tools": [TOOLS[0], WRONG]}, "tools[1].function.parameters"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "wrong"}}, "tools": [TOOLS[0], WRONG]},
            "tools[1].function.parameters",
        ),
        ({"functions": [{"name": "x"}]}, "functions"),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(served: Served, fields: dict[str, Any], param: str) -> None:
    body = {"tools": TOOLS, **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        served.client().chat.completions.create(model=MODEL_NAME, messages=QUESTION, extra_body=body)
    assert str(caught.value.param).startswith(param)
