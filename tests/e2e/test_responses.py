"""/v1/responses through the real, strict SDK: text, pictures, tools, structured output, streams, several turns."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from support.served import Served
from support.talk import MODEL_NAME, data_url, sample

PAINT: Any = {
    "type": "function",
    "name": "paint",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}


class Thing(BaseModel):
    colour: Literal["red", "blue"]
    sides: Literal[0, 4]


@pytest.fixture
def ask(served: Served):
    client = served.client(_strict_response_validation=True)

    def ask(given: Any, method: str = "create", **options: Any) -> Any:
        options = {"model": MODEL_NAME, "temperature": 0, "max_output_tokens": 100, **options}
        return getattr(client.responses, method)(input=given, **options)

    return ask


def see(name: str, text: str) -> dict[str, Any]:
    picture = {"type": "input_image", "image_url": data_url(sample(name)), "detail": "auto"}
    return {"role": "user", "content": [picture, {"type": "input_text", "text": text}]}


def test_an_answer_is_the_chats_and_a_conversation_goes_on(ask, client: openai.OpenAI) -> None:
    question = see("square_and_star.png", "What is on the left?")
    first = ask([question])
    assert first.output_text == "A blue square."
    assert (first.status, first.usage.output_tokens > 0) == ("completed", True)
    more = {"role": "user", "content": "What is on the right?"}
    second = ask([question, *first.output, more])
    chat = client.chat.completions.create(
        model=MODEL_NAME, temperature=0, max_tokens=100,
        messages=[
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": data_url(sample("square_and_star.png"))}},
                {"type": "text", "text": "What is on the left?"},
            ]},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "What is on the right?"},
        ],
    )  # fmt: skip
    assert second.output_text == chat.choices[0].message.content
    assert second.usage.input_tokens == chat.usage.prompt_tokens
    assert ask("Hello", instructions="Be kind.").output_text


def test_a_stream_adds_up_to_what_the_sdk_makes_of_it(ask) -> None:
    whole = ask([see("dog_and_pizza.png", "What is in the picture?")])
    with ask([see("dog_and_pizza.png", "What is in the picture?")], "stream") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text == "A dog and a pizza."


def test_functions_are_called_streamed_and_answered(ask) -> None:
    question = see("cat.png", "Paint it.")
    called = ask([question], tools=[PAINT], tool_choice="required", parallel_tool_calls=False)
    (call,) = called.output
    assert (call.type, call.name, json.loads(call.arguments)["colour"] in ("red", "blue")) == (
        "function_call", "paint", True,
    )  # fmt: skip
    events = list(ask([question], tools=[PAINT], tool_choice={"type": "function", "name": "paint"}, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert kinds == [
        "created", "in_progress", "output_item.added", *["function_call_arguments.delta"] * len(deltas),
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert "".join(deltas) == events[-1].response.output[0].arguments == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Done."}
    after = ask([question, call, result], tools=[PAINT], tool_choice="none")
    assert after.output_text
    assert [item.type for item in after.output] == ["message"]


def test_an_answer_is_held_to_a_model(ask) -> None:
    parsed = ask([see("red_circle.png", "What is it?")], "parse", text_format=Thing)
    assert isinstance(parsed.output_parsed, Thing)
    assert parsed.text.format.name == "Thing"
    free = ask("Hello", text={"format": {"type": "json_object"}}, max_output_tokens=20)
    assert free.output_text.lstrip().startswith("{")
