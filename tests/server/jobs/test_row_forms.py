"""The forms of rows: each is read as the conversation that it means, or refused by the name of what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from opsin_plugins.spec import ImageBudget
from opsin_server.api.answer.submit import to_prompt
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.errors import BadRequest
from opsin_server.jobs.examples import PreferencePair, TrainingExample, last_only
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.row_forms import HARMLESS, read_example
from opsin_server.text.conversation import ImagePart, Message, TextPart

A, B = "data:image/png;base64,AAAA", "https://example.com/b.png"
USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def read(row: dict[str, Any]) -> Any:
    return read_example(row, ImageBudget(), DataLimits())


def said(message: Message) -> tuple[str, list[str]]:
    return message.role, [p.text if isinstance(p, TextPart) else f"<{p.source}>" for p in message.parts]


def told(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    return [said(message) for message in read(row).messages]


# In the manner of OpenAI's own example of vision fine-tuning: several user turns in a row, a URL and a data URL.
OPENAI = {
    "messages": [
        {"role": "system", "content": "You are an assistant that identifies uncommon cheeses."},
        {"role": "user", "content": "What is this cheese?"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": B}}]},
        {"role": "assistant", "content": "Danbo"},
    ]
}


def test_openai_vision_rows() -> None:
    example = read(OPENAI)
    assert [said(message) for message in example.messages] == [
        ("system", ["You are an assistant that identifies uncommon cheeses."]),
        ("user", ["What is this cheese?"]),
        ("user", [f"<{B}>"]),
        ("assistant", ["Danbo"]),
    ]
    assert example.learned == (False, False, False, True)


def test_messages_are_read_as_a_chats_are() -> None:
    parts = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": A, "detail": "low"}},
        {"type": "image_url", "image_url": B},
        {"type": "image", "image": A},
        {"type": "input_image", "image_url": A, "detail": "high"},
        {"type": "image_url", "image_url": {"url": A, "max_pixels": 999}},
    ]
    messages = [
        {"role": "developer", "content": "d", "name": "n"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}], "reasoning_content": "hm"},
        {"role": "user", "content": "q"},
    ]
    request = ChatRequest.model_validate({"model": "m", "messages": messages})
    example = read({"messages": [*messages, BOT]})
    assert list(example.messages[:-1]) == to_prompt(request, None)


def test_weights() -> None:
    turns = [USER, {**BOT, "weight": 0}, USER, {**BOT, "weight": 1}, USER, BOT]
    example = read({"messages": turns})
    assert example.learned == (False, False, False, True, False, True)
    assert last_only(example).learned == (False,) * 5 + (True,)
    assert last_only(read({"messages": [*turns, {**BOT, "weight": 0.0}]})).learned == (False,) * 7


SHARE_GPT = {
    "id": "000000033471",
    "image": "coco/train2017/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
        {"from": "gpt", "value": "White and red."},
        {"from": "human", "value": "More?"},
        {"from": "gpt", "value": "No."},
    ],
}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            SHARE_GPT,
            [
                ("user", ["<coco/train2017/000000033471.jpg>", "What are the colors of the bus?"]),
                ("assistant", ["White and red."]),
                ("user", ["More?"]),
                ("assistant", ["No."]),
            ],
        ),
        (
            {
                "system": "s",
                "images": [A, B],
                "conversations": [
                    {"from": "user", "value": "first <image>, then\n<image>\nwhich?"},
                    {"from": "assistant", "value": "b"},
                ],
            },
            [
                ("system", ["s"]),
                ("user", ["first ", f"<{A}>", ", then\n", f"<{B}>", "\nwhich?"]),
                ("assistant", ["b"]),
            ],
        ),
        (
            {"messages": [{"role": "user", "content": "<image><image>which?"}, BOT], "images": [A, {"path": "b.png"}]},
            [("user", [f"<{A}>", "<b.png>", "which?"]), ("assistant", ["a"])],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "t"}, {"type": "image"}]},
                    BOT,
                ],
                "images": [A, {"url": B}],
            },
            [("user", [f"<{A}>", "t", f"<{B}>"]), ("assistant", ["a"])],
        ),
        ({"messages": [USER, BOT], "images": [A]}, [("user", [f"<{A}>", "q"]), ("assistant", ["a"])]),
        ({"messages": [USER, BOT], "images": []}, [("user", ["q"]), ("assistant", ["a"])]),
        ({"prompt": "q", "completion": "a"}, [("user", ["q"]), ("assistant", ["a"])]),
        (
            {"prompt": "what?\n<image>", "completion": "a", "image": A, "tools": None},
            [("user", ["what?", f"<{A}>"]), ("assistant", ["a"])],
        ),
        (
            {"prompt": [USER, BOT, USER], "completion": [BOT]},
            list([("user", ["q"]), ("assistant", ["a"])] * 2),
        ),
        # Without a column of images a tag is what somebody said.
        (
            {"messages": [{"role": "user", "content": "a <image> tag?"}, BOT]},
            [("user", ["a <image> tag?"]), ("assistant", ["a"])],
        ),
    ],
)
def test_forms(row: dict[str, Any], expected: list[tuple[str, list[str]]]) -> None:
    assert told(row) == expected


def test_only_the_completion_is_learned() -> None:
    assert read({"prompt": [USER, BOT, USER], "completion": [BOT]}).learned == (False, False, False, True)


# In the manner of OpenAI's own example of preferences.
OPENAI_PREFERENCE = {
    "input": {
        "messages": [{"role": "user", "content": "How cold is San Francisco today?"}],
        "tools": [],
        "parallel_tool_calls": True,
    },
    "preferred_output": [{"role": "assistant", "content": "Not as cold as expected."}],
    "non_preferred_output": [{"role": "assistant", "content": "Not particularly cold."}],
}


def test_openai_preference_rows() -> None:
    pair = read(OPENAI_PREFERENCE)
    assert [said(m) for m in pair.preferred.messages] == [
        ("user", ["How cold is San Francisco today?"]),
        ("assistant", ["Not as cold as expected."]),
    ]
    assert said(pair.non_preferred.messages[-1]) == ("assistant", ["Not particularly cold."])


IMAGE_QUESTION = {"role": "user", "content": [{"type": "image", "image": A}, {"type": "text", "text": "q"}]}
OTHER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "row",
    [
        {"input": {"messages": [IMAGE_QUESTION]}, "preferred_output": [BOT], "non_preferred_output": [OTHER]},
        {"prompt": [IMAGE_QUESTION], "chosen": [BOT], "rejected": [OTHER]},
        {"prompt": "<image>q", "chosen": "a", "rejected": "b", "images": [A]},
    ],
)
def test_preferences(row: dict[str, Any]) -> None:
    pair = read(row)
    assert isinstance(pair, PreferencePair)
    for example, text in ((pair.preferred, "a"), (pair.non_preferred, "b")):
        assert [said(m) for m in example.messages] == [("user", [f"<{A}>", "q"]), ("assistant", [text])]
        assert example.learned == (False, True)


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, "the row has no 'messages'"),
        ({"text": "x"}, "the row has no 'messages'"),
        (chat(USER, BOT, conversations=[]), "both 'messages' and 'conversations'"),
        (chat(USER, BOT, tools=[{"type": "function"}]), "tools: rows with tools are not trained here"),
        (chat(USER, BOT, functions=[{}]), "functions: rows with tools"),
        (chat(USER, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}), r"messages\[1\].tool_calls"),
        (chat(USER, {"role": "tool", "content": "x"}, BOT), r"messages\[1\].role"),
        (chat(USER, BOT, videos=["x"]), "videos: rows with anything but text and images"),
        (chat(USER, BOT, colour="red"), '"colour" is not known here'),
        (chat(USER, BOT, label=True), "label: rows with other objectives"),
        (chat(USER), r"messages\[0\]: the last message must be the assistant's, not the user's"),
        (chat(), "messages is empty"),
        ({"messages": "x"}, "messages"),
        ({"messages": [1]}, r"messages\[0\]"),
        (chat(USER, {"role": "assistant", "content": None}), r"messages\[1\].content.*null or empty"),
        (chat(USER, {"role": "assistant", "content": ""}), "null or empty"),
        (chat({**USER, "weight": 1}, BOT), r"messages\[0\].weight.*only the assistant's"),
        (chat(USER, {**BOT, "weight": 0.5}), r"messages\[1\].weight.*0.5.*a weight is 0 or 1"),
        (chat(USER, {**BOT, "weight": True}), "a weight is 0 or 1"),
        (chat(USER, {**BOT, "weight": "1"}), "a weight is 0 or 1"),
        (chat(USER, {"role": "assistant", "content": [{"type": "image", "image": A}]}), "user messages only"),
        (chat({"role": "user", "content": [{"type": "image"}]}, BOT), "needs"),
        (chat({"role": "user", "content": [{"type": "video", "video": "x"}]}, BOT), r"messages\[0\].content\[0\].type"),
        (chat({**USER, "colour": 1}, BOT), r"messages\[0\].colour"),
        (chat({"role": "user", "content": "<image>"}, BOT, images=[A, B]), "1 places for images, and the row has 2"),
        (
            chat({"role": "user", "content": "<image> <image>"}, BOT, images=[A]),
            "2 places for images, and the row has 1",
        ),
        (
            chat(USER, {"role": "assistant", "content": "<image>"}, images=[A]),
            r"messages\[1\]: <image> may stand in the user's",
        ),
        (chat(IMAGE_QUESTION, BOT, images=[B]), "both in 'images' and in messages"),
        (chat(USER, BOT, images=[A], image=B), "both 'image' and 'images'"),
        (chat(USER, BOT, images=[1]), r"images\[0\] must be a URL"),
        (chat(USER, BOT, images=[{"bytes": "x"}]), r"images\[0\] must be a URL"),
        (chat({"role": "system", "content": "s"}, BOT, images=[A]), "no message of the user's"),
        (
            {"conversations": [{"from": "human", "value": "<image>x"}, {"from": "gpt", "value": "a"}]},
            "1 places for images, and the row has 0",
        ),
        ({"conversations": [{"from": "tool", "value": "x"}]}, r'conversations\[0\].from is "tool"'),
        ({"conversations": [{"value": "x"}]}, r"conversations\[0\] must have 'from' and 'value'"),
        ({"conversations": [{"from": "human", "value": "x", "loss": 1}]}, '"loss", which is not known'),
        ({"conversations": {}}, "must be a list"),
        ({"completion": "a"}, "no 'prompt'"),
        ({"prompt": "q"}, "the row has no 'messages'"),
        ({"prompt": [USER, BOT], "completion": "a"}, "must not be the assistant's"),
        ({"prompt": "q", "chosen": "a"}, "no 'rejected'"),
        ({"preferred_output": [BOT], "non_preferred_output": [OTHER]}, "input must be an object"),
        (
            {"input": {"messages": [USER], "tools": [1]}, "preferred_output": [BOT], "non_preferred_output": [OTHER]},
            "input.tools",
        ),
        (
            {"input": {"messages": [USER]}, "preferred_output": [BOT, BOT], "non_preferred_output": [OTHER]},
            "preferred_output must be a list of one",
        ),
        ({"input": {"messages": [USER]}, "preferred_output": [BOT]}, "non_preferred_output must be a list of one"),
        (
            {"input": {"messages": [USER]}, "preferred_output": [USER], "non_preferred_output": [OTHER]},
            r"preferred_output\[0\]",
        ),
        (
            {
                "input": {"messages": [USER]},
                "preferred_output": [{**BOT, "weight": 1}],
                "non_preferred_output": [OTHER],
            },
            "has no meaning where two answers",
        ),
    ],
)
def test_refusals(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadRequest, match=expected):
        read(row)


def test_what_rows_have_beside_what_is_learned() -> None:
    more: dict[str, Any] = {key: {"any": ["thing"]} for key in HARMLESS}
    assert read(chat(USER, BOT, **more, tools=[], unknown=None)) == read(chat(USER, BOT))


def test_how_many_messages() -> None:
    with pytest.raises(BadRequest, match="messages has 4 messages; the limit is 3"):
        read_example(chat(USER, BOT, USER, BOT), ImageBudget(), DataLimits(max_messages=3))


def test_paths_of_images_are_those_of_the_row() -> None:
    example = read(chat(IMAGE_QUESTION, BOT))
    assert isinstance(example, TrainingExample)
    assert [p.param for m in example.messages for p in m.parts if isinstance(p, ImagePart)] == [
        "messages[0].content[0].image"
    ]
