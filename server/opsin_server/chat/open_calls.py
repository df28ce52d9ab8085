"""Calls of tools that wait for their results, in a conversation that is read from its beginning."""

from __future__ import annotations

from collections.abc import Iterable

from opsin_server.chat.fields import stated, wrong
from opsin_server.chat.messages import ChatMessage

SHOWN = 10  # ids in a message


class OpenCalls:
    """noun: what a call stands in."""

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._called = set[str]()
        self.waiting: list[str] = []  # an id as often as it was called by: some clients count anew in each turn

    def call(self, ids: Iterable[str]) -> None:
        for one in ids:
            self._called.add(one)
            self.waiting.append(one)

    def answer(self, call_id: str, param: str) -> None:
        """For a validator."""
        if call_id not in self._called:
            raise wrong(f"no {self._noun} before it calls a tool by this id", param)
        if call_id not in self.waiting:
            raise wrong("the call by this id has its result already", param)
        self.waiting.remove(call_id)

    @property
    def ids(self) -> str:
        """Of those that wait."""
        more = f" and {len(self.waiting) - SHOWN} more" if len(self.waiting) > SHOWN else ""
        return ", ".join(self.waiting[:SHOWN]) + more


def check_results(messages: Iterable[ChatMessage]) -> None:
    """The results of a message's calls come directly behind it. For a validator, and in OpenAI's words."""
    calls, index = OpenCalls("message"), -1
    for index, message in enumerate(messages):
        if message.tool_call_id is not None:
            calls.answer(message.tool_call_id, f"messages[{index}].tool_call_id")
        elif calls.waiting:
            break
        calls.call(call.id for call in message.tool_calls or ())
    if calls.waiting:
        raise stated(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {calls.ids}",
            f"messages[{index}].role",
        )


def check_results_anywhere(messages: Iterable[ChatMessage]) -> None:
    """As the Responses API has it: something else may stand between a call and its result."""
    calls = OpenCalls("message")
    for index, message in enumerate(messages):
        if message.tool_call_id is not None:
            calls.answer(message.tool_call_id, f"messages[{index}].tool_call_id")
        calls.call(call.id for call in message.tool_calls or ())
    if calls.waiting:
        raise stated(f"No tool output found for function call {calls.waiting[0]}.", "messages")
