"""Changes a conversation's turns for a template that takes no system message or demands alternating roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import groupby

from opsin_server.errors import BadRequest
from opsin_server.text.conversation import Message, Part, TextPart
from opsin_server.text.trusted import joined

BETWEEN = "\n\n"


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """Puts the system text in front of the first user turn."""
    system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    if not system:
        return turns
    first = next((i for i, message in enumerate(turns) if message.role == "user"), None)
    if first is None:
        raise BadRequest(
            "this model's chat template takes no system message, and there is no user message to carry its text",
            param="messages",
        )
    folded = [*system, turns[first]]
    parts = reduce(_joined, (message.parts for message in folded))
    turns[first] = replace(turns[first], parts=parts, is_string=all(message.is_string for message in folded))
    return turns


def merge_turns(messages: Sequence[Message]) -> list[Message]:
    """Consecutive turns of one role become one; calls of tools and their results stay as they are."""
    groups = groupby(enumerate(messages), key=lambda pair: (pair[1].role, pair[0] if _is_of_tools(pair[1]) else -1))
    return [_merged([message for _, message in group]) for _, group in groups]


def _is_of_tools(message: Message) -> bool:
    return message.role == "tool" or bool(message.tool_calls)


def merge_answers(messages: Sequence[Message], learned: Sequence[bool]) -> tuple[list[Message], list[bool]]:
    """Consecutive turns of the assistant become one where all of them are learned, or none: what stands between them is
    then learned as they are."""
    groups = groupby(zip(messages, learned, strict=True), key=lambda pair: (pair[0].role, pair[1]))
    out: list[tuple[Message, bool]] = []
    for (role, is_learned), group in groups:
        turns = [message for message, _ in group]
        out += [(_merged(turns), is_learned)] if role == "assistant" else [(turn, is_learned) for turn in turns]
    return [message for message, _ in out], [is_learned for _, is_learned in out]


def _merged(turns: Sequence[Message]) -> Message:
    if len(turns) == 1:
        return turns[0]
    thoughts = [message.reasoning for message in turns if message.reasoning is not None]
    parts = reduce(_joined, (message.parts for message in turns))
    is_string = all(message.is_string for message in turns)
    return Message(turns[0].role, parts, joined(thoughts, BETWEEN) if thoughts else None, is_string)


def one_text(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """All texts of a turn in one part, at the place of the first."""
    texts = [part for part in parts if isinstance(part, TextPart)]
    if len(texts) < 2:
        return parts
    whole = TextPart(joined([part.text for part in texts]))
    at = parts.index(texts[0])
    return (*parts[:at], whole, *(part for part in parts[at:] if not isinstance(part, TextPart)))


def _joined(first: tuple[Part, ...], second: tuple[Part, ...]) -> tuple[Part, ...]:
    """A blank line follows the first one's text. Text meets text in one part: templates may trim each part."""
    if not first or not second or not isinstance(first[-1], TextPart) or not first[-1].text:
        return (*first, *second)
    text = first[-1].text + BETWEEN
    if isinstance(second[0], TextPart):
        return (*first[:-1], TextPart(text + second[0].text), *second[1:])
    return (*first[:-1], TextPart(text), *second)
