"""How a chat template writes the calls of tools, found out at load by rendering some."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from opsin_server.errors import OpsinError
from opsin_server.text.conversation import Message, TextPart, ToolCall

Kind = Literal["object", "named", "pythonic"]
Tools = Sequence[dict[str, Any]]

# What is rendered: digits and letters that no template has of its own, and no filter changes.
DEFINED, FIRST, SECOND = "d7311", "f7304", "f7307"
FIRST_ARGUMENTS, SECOND_ARGUMENTS = {"k7305": "v7306"}, {"k7308": "v7309"}
RESULT, SAID = "7310", "7312"
IDS = ("abcdef123", "abcdef124")  # nine letters and digits, as Mistral's templates demand

_OBJECT = re.compile(r'\{\s*"name"\s*:\s*"$')
_ARGUMENTS_KEY = re.compile(r'^"\s*,\s*"(arguments|parameters)"\s*:\s*$')


CALL_ID = "\ue006"


@dataclass(frozen=True)
class ToolFormat:
    """A call is written as begin, name, middle, arguments, end; further ones follow behind `between` in place of `end`.
    CALL_ID in them stands for the id of a call.

    kind: "object": a JSON object with the name and the arguments, which `key` calls so. "named": the name, and JSON
    behind it. "pythonic": calls of functions in a list. opener: what stands in front of the first call, and in front
    of nothing else; empty: the answer begins with the call. short_ids: ids of calls have nine letters and digits."""

    kind: Kind
    begin: str
    middle: str
    between: str
    end: str
    opener: str
    key: str = "arguments"
    short_ids: bool = False


# For templates without tools: in words of their own (`spelled_tools`), by which most models know what is meant.
SPELLED = ToolFormat(
    "object",
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    '}\n</tool_call>\n<tool_call>\n{"name": "',
    "}\n</tool_call>",
    "<tool_call>",
)


@dataclass(frozen=True)
class ToolSupport:
    """format None: the template shows tools, and calls of them in a form that is not read here. native False: it shows
    none, and they are spelled out in messages."""

    native: bool
    format: ToolFormat | None = field(default=SPELLED)


Show = Callable[[Sequence[Message], Tools | None], str]


def observe_tools(show: Show) -> ToolSupport:
    """show: renders a conversation without the head of an answer, and raises OpsinError where it cannot."""
    user = Message("user", (TextPart("7301"),), is_string=True)
    if DEFINED not in _shown(show, [user], [_definition()]):
        return ToolSupport(native=False)
    answered = Message("assistant", (TextPart("7314"),), is_string=True)
    called = [user, _calls((FIRST, FIRST_ARGUMENTS, IDS[0])), _result(IDS[0]), answered, user]
    if RESULT not in _shown(show, called, [_definition()]):
        return ToolSupport(native=True, format=None)
    long_ids = [user, _calls((FIRST, FIRST_ARGUMENTS, "call_0123456789")), _result("call_0123456789")]
    short_ids = not _shown(show, long_ids, [_definition()])
    said = _shown(show, [user, Message("assistant", (TextPart(SAID),), is_string=True), user], None)
    alone = [user, _calls((FIRST, FIRST_ARGUMENTS, IDS[0])), user]
    one = _shown(show, alone, None) or _shown(show, called, None)
    both = _calls((FIRST, FIRST_ARGUMENTS, IDS[0]), (SECOND, SECOND_ARGUMENTS, IDS[1]))
    two = _shown(show, [user, both, *map(_result, IDS), answered, user], None)
    return ToolSupport(native=True, format=_format(one, two, said, short_ids))


def _shown(show: Show, messages: Sequence[Message], tools: Tools | None) -> str:
    """Nothing where the template refuses it."""
    try:
        return str.__str__(show(messages, tools))
    except OpsinError:
        return ""


def _definition() -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"k7305": {"type": "string"}}, "required": ["k7305"]}
    function = {"name": DEFINED, "description": "7313", "parameters": parameters}
    return {"type": "function", "function": function}


def _calls(*calls: tuple[str, dict[str, str], str]) -> Message:
    made = tuple(ToolCall(call_id, name, json.dumps(arguments)) for name, arguments, call_id in calls)
    return Message("assistant", (TextPart(""),), is_string=True, tool_calls=made)


def _result(call_id: str) -> Message:
    return Message("tool", (TextPart(RESULT),), is_string=True, tool_call_id=call_id)


def _format(one: str, two: str, said: str, short_ids: bool) -> ToolFormat | None:
    """one, two: conversations with a call and with two; said: one in which a text stands in the call's place."""
    name, found = one.find(FIRST), _arguments(one, *FIRST_ARGUMENTS.items())
    if name < 0 or found is None or SAID not in said:
        return None
    head = next((at for at, (a, b) in enumerate(zip(one, said, strict=False)) if a != b), 0)
    begin, middle = one[min(head, name) : name], one[name + len(FIRST) : found[0]]
    end = _up_to_turn_end(one[found[1] :].partition(RESULT)[0], said[said.find(SAID) + len(SAID) :])
    if "7301" in end:
        return None
    between = _between(two)
    begin, middle, between, end = (_without_ids(part) for part in (begin, middle, between, end))
    match = _OBJECT.search(begin)
    key = _ARGUMENTS_KEY.match(middle)
    if match and key:
        opener = begin[: match.start()].strip().rstrip(" \n[")
        return ToolFormat("object", begin, middle, between, end, opener, key[1], short_ids)
    if middle.startswith("(") and begin.rstrip().endswith("["):
        return ToolFormat("pythonic", begin, middle, between or ", ", end, begin.strip(), short_ids=short_ids)
    if begin.strip() and not found[2] and not {'"', CALL_ID} & set(begin):
        return ToolFormat("named", begin, middle, between, end, begin.strip(), short_ids=short_ids)
    return None


def _arguments(text: str, pair: tuple[str, str]) -> tuple[int, int, bool] | None:
    """Where the arguments stand, and whether they are Python's."""
    key, value = pair
    if found := re.search(rf'\{{\s*"{key}"\s*:\s*"{value}"\s*\}}', text):
        return found.start(), found.end(), False
    if found := re.search(rf"\({key}=[\"']{value}[\"']\)", text):
        return found.start() + 1, found.end() - 1, True
    return None


def _up_to_turn_end(text: str, behind: str) -> str:
    """behind: what follows on an answer. As much of it as stands in the text as well is the end of a turn."""
    length = next((n for n in range(len(behind), 0, -1) if behind[:n] in text), 0)
    return text.partition(behind[:length])[0] if length else text


def _between(two: str) -> str:
    """What stands between two calls. Nothing: the template takes one at a time."""
    first = _arguments(two, *FIRST_ARGUMENTS.items())
    second = two.find(SECOND)
    return "" if first is None or second < first[1] else two[first[1] : second]


def _without_ids(text: str) -> str:
    for call_id in IDS:
        text = text.replace(call_id, CALL_ID)
    return text
