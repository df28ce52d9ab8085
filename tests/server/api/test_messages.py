"""Messages and their parts: what of them reaches the prompt, what is ignored, and what is refused at its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import chat as sdk
from wire_requests import USER, accepted, refused

from opsin_plugins.spec import ImageBudget
from opsin_server.api.answer.submit import to_prompt
from opsin_server.api.routes.read_body import parse
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.chat.to_messages import LOW_DETAIL_PIXELS
from opsin_server.errors import BadRequest
from opsin_server.text.conversation import ImagePart, TextPart

IMAGE = {"type": "image_url", "image_url": {"url": "data:,x"}}


def test_all_forms_of_an_image_arrive_with_their_path_and_budget() -> None:
    parts = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "u0", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "u1", "detail": "high"}},
        {"type": "image_url", "image_url": "u2"},
        {"type": "image", "image": "u3"},
        {"type": "text", "text": "now", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "input_text", "text": "then"},
        {"type": "input_image", "image_url": "u7", "detail": "low"},
        {"type": "input_image", "image_url": {"url": "u8"}, "detail": None},
        {"type": "image_url", "image_url": {"url": "u9", "detail": None}, "uuid": "7", "cache_control": {}},
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
        TextPart("then"),
        ImagePart("u7", ImageBudget(LOW_DETAIL_PIXELS, 77), f"{at}[7].image_url"),
        ImagePart("u8", ImageBudget(None, 77), f"{at}[8].image_url"),
        ImagePart("u9", ImageBudget(None, 77), f"{at}[9].image_url"),
    )


@pytest.mark.parametrize(
    ("part", "fields", "param"),
    [
        ({"num_frames": 2}, {}, "messages[0].content[0].num_frames"),
        ({}, {"mm_processor_kwargs": {"max_frames": 2}}, "mm_processor_kwargs.max_frames"),
        ({}, {"media_io_kwargs": {"video": {"num_frames": 2}}}, "media_io_kwargs.video.num_frames"),
        ({"min_frames": 3, "max_frames": 2}, {}, "messages[0].content[0].min_frames"),
        ({"num_frames": 3, "max_frames": 2}, {}, "messages[0].content[0].num_frames"),
        ({"fps": 1e-9}, {}, "messages[0].content[0].fps"),
    ],
)
def test_what_frames_sent_as_pictures_cannot_have_is_refused_where_it_is_said(
    part: dict[str, Any], fields: dict[str, Any], param: str
) -> None:
    def read(part: dict[str, Any], fields: dict[str, Any]) -> None:
        content = [{"type": "video", "video": ["data:,", "data:,"], **part}]
        body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
        to_prompt(parse(ChatRequest, json.dumps(body).encode()), None)

    with pytest.raises(BadRequest) as caught:
        read(part, fields)
    assert caught.value.param == param
    read({"fps": 0.5}, {"media_io_kwargs": {"video": {"num_frames": 2}}})  # (the part's own replaces it)


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


def calls(function: dict[str, Any], **more: Any) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": function, **more}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


ASKS = calls({"name": "f", "arguments": "{}"})
RESULT = {"role": "tool", "content": "x", "tool_call_id": "1"}
WRONG_MESSAGES: list[tuple[list[Any], str]] = [
    ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0].tool_call_id"),
    ([USER, ASKS, {"role": "tool", "content": "x", "tool_call_id": "2"}], "messages[2].tool_call_id"),
    ([USER, ASKS, {"role": "tool", "content": "x"}], "messages[2].tool_call_id"),
    ([USER, ASKS, {"role": "tool", "tool_call_id": "1"}], "messages[2].content"),
    ([USER, ASKS, RESULT, RESULT], "messages[3].tool_call_id"),
    ([{**USER, "tool_call_id": "1"}], "messages[0].tool_call_id"),
    ([{**USER, "tool_calls": ASKS["tool_calls"]}], "messages[0].tool_calls"),
    ([{"role": "function", "content": "x", "name": "f"}], "messages[0].role"),
    ([{"role": "User", "content": "x"}], "messages[0].role"),
    ([{"role": 1, "content": "x"}], "messages[0].role"),
    ([{"content": "x"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": None}], "messages[0].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "user", "content": "x", "foo": 1}], "messages[0].foo"),
    ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": [{"type": "text", "text": None}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": [{"type": "text", "text": "x", "image": "u"}]}], "messages[0].content[0].image"),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "file", "file": {"file": "f"}}]}], "messages[0].content[0].file.file"),
    ([{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}], "messages[0].content[0].video_url.url"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].image_url"),
    ([{"role": "user", "content": [{"type": "image_url", "file_id": "f"}]}], "messages[0].content[0].image_url"),
    ([{"role": "user", "content": [{"type": "text", "text": "x", "detail": "low"}]}], "messages[0].content[0].detail"),
    ([{"role": "user", "content": [{"type": "input_text", "image": "u"}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].image_url.url"),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "x"}}]}],
        "messages[0].content[0].image_url.detail",
    ),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": ""}}]}],
        "messages[0].content[0].image_url.detail",
    ),
    ([{"role": "system", "content": [IMAGE]}, USER], "messages[0].content[0].type"),
    ([USER, {"role": "assistant", "content": [IMAGE]}, USER], "messages[1].content[0].type"),
    ([USER, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, USER], "messages[1].tool_calls[0]"),
    ([USER, calls({"name": "f", "arguments": "[1]"}), USER], "messages[1].tool_calls[0].function.arguments"),
    ([USER, calls({"name": "f", "arguments": "{"}), USER], "messages[1].tool_calls[0].function.arguments"),
    ([USER, calls({"name": ""}), USER], "messages[1].tool_calls[0].function.name"),
    ([USER, calls({"name": "f"}, type="custom"), USER], "messages[1].tool_calls[0].type"),
    ([USER, {"role": "assistant", "content": "x", "refusal": "no"}, USER], "messages[1].refusal"),
    ([USER, {"role": "assistant", "content": "x", "function_call": {"name": "f"}}, USER], "messages[1].function_call"),
    ([USER, {"role": "assistant", "content": "x", "audio": {"id": "a"}}, USER], "messages[1].audio"),
    ([USER, {"role": "assistant", "content": "x", "prefix": True}, USER], "messages[1].prefix"),
    ([{"role": "user", "content": "x", "images": ["iVBORw0KGgo="]}], "messages[0].images"),
    ([{"role": "user", "content": "x", "type": "reasoning"}], "messages[0].type"),
    ([{"role": "system", "content": None}, USER], "messages[0].content"),
    ([{"role": "system", "content": []}, USER], "messages[0].content"),
    ([USER, {"role": "assistant", "content": "and"}], "messages[1].role"),
    ([USER, {"role": "assistant"}], "messages[1].role"),
]


@pytest.mark.parametrize(("messages", "param"), WRONG_MESSAGES)
def test_a_wrong_message_is_refused_at_its_place(messages: list[Any], param: str) -> None:
    error = refused(messages=messages)
    assert error.param.startswith(param)
    assert param in error.message


ASKS_TWICE = {**ASKS, "tool_calls": [*ASKS["tool_calls"], {**ASKS["tool_calls"][0], "id": "2"}]}


@pytest.mark.parametrize(
    ("messages", "place", "ids"),
    [
        ([USER, ASKS, USER], 2, "1"),
        ([USER, ASKS_TWICE, RESULT, USER], 3, "2"),
        ([USER, ASKS_TWICE, RESULT], 2, "2"),
        ([USER, ASKS, USER, RESULT], 2, "1"),
        ([USER, ASKS_TWICE, {"role": "assistant", "content": "x"}, USER], 2, "1, 2"),
    ],
)
def test_calls_of_tools_without_their_results_are_refused(messages: list[Any], place: int, ids: str) -> None:
    error = refused(messages=messages)
    assert error.param == f"messages[{place}].role"
    assert error.message == (
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
        f"The following tool_call_ids did not have response messages: {ids}"
    )


def test_ids_of_calls_may_come_again_and_a_continued_message_may_end_with_calls() -> None:
    accepted(messages=[USER, ASKS, RESULT, USER, ASKS, RESULT])
    accepted(messages=[USER, ASKS], continue_final_message=True, add_generation_prompt=False)


def test_an_answer_can_be_sent_back_as_the_sdk_gives_it() -> None:
    for answer in (
        sdk.ChatCompletionMessage(role="assistant", content="hello").to_dict(),
        sdk.ChatCompletionMessage(role="assistant", content="hello").model_dump(),
        {"role": "assistant", "content": "x", "annotations": [], "tool_calls": [], "refusal": None},
        {"role": "assistant", "content": "x", "refusal": "", "images": [], "type": "message", "status": "completed"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": [], "logprobs": []}]},
    ):
        accepted(messages=[USER, answer, USER])


OF_A_MESSAGE = {
    "name": "bob",
    "id": "msg_1",
    "status": "completed",
    "timestamp": 1764403200,
    "created_at": "2026-11-29T08:00:00Z",
    "createdAt": "2026-11-29T08:00:00Z",
    "metadata": {"a": [1]},
    "annotations": [{"type": "url_citation", "url_citation": {"url": "u"}}],
    "cache_control": {"type": "ephemeral"},
    "uuid": "7",
    "reasoning_details": [{"type": "reasoning.text", "text": "I thought"}],
    "thinking_blocks": [{"type": "thinking", "thinking": "I thought", "signature": "s"}],
    "provider_specific_fields": {"citations": None},
}
OF_A_PART = {"id": "p", "index": 0, "uuid": "7", "annotations": [], "logprobs": [], "cache_control": {"type": "x"}} | {
    "prompt_cache_breakpoint": {"mode": "explicit"},
}  # fmt: skip


def test_what_clients_add_to_messages_and_parts_changes_no_prompt() -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "u"}}]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "and"},
    ]
    dressed = [message | OF_A_MESSAGE for message in messages]
    dressed[1]["content"] = [part | OF_A_PART for part in parts]
    dressed[1]["content"][1]["image_url"] = {"url": "u", "format": "image/png"}
    assert to_prompt(accepted(messages=dressed), None) == to_prompt(accepted(messages=messages), None)
    for field, value in OF_A_MESSAGE.items():
        accepted(messages=[{**USER, field: value}])
    for field, value in OF_A_PART.items():
        accepted(messages=[{"role": "user", "content": [{**parts[0], field: value}]}])


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_what_an_assistant_thought_reaches_the_template(field: str) -> None:
    messages = [{"role": role, "content": "x", field: "I thought"} for role in ("system", "user", "assistant", "user")]
    assert [m.reasoning for m in to_prompt(accepted(messages=messages), None)] == [None, None, "I thought", None]
    both = {"role": "assistant", "content": "x", "reasoning_content": "", "reasoning": "I thought", "thinking": None}
    assert to_prompt(accepted(messages=[USER, both, USER]), None)[1].reasoning == "I thought"
    assert to_prompt(accepted(messages=[USER, {"role": "assistant", "content": "x", field: {"text": "I"}}, USER]), None)


@pytest.mark.parametrize("turn", [{}, {"content": None}, {"content": []}, {"content": ""}])
def test_an_assistants_turn_may_be_empty(turn: dict[str, Any]) -> None:
    messages = to_prompt(accepted(messages=[USER, {"role": "assistant", **turn}, USER]), None)
    assert messages[1].parts == (TextPart(""),)
