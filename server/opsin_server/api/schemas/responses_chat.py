"""A Responses request as the chat request that it is, and the fields of the one by the names of the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.api.schemas.compaction import unpacked
from opsin_server.api.schemas.responses import ResponsesInput, ResponsesRequest, TextFormat
from opsin_server.api.schemas.responses_items import InputItem, InputPart
from opsin_server.chat.describe_error import describe
from opsin_server.chat.open_calls import check_results_anywhere
from opsin_server.errors import BadRequest

NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "tool_choice.function": "tool_choice",
}
THOUGHTS = {"role", "content", "reasoning_content"}  # of a message that has no more than these yet
TOOL = re.compile(r"(tools\[\d+\])\.function\b")


class _ConvertedRequest(ChatRequest):
    def _check_results(self) -> None:
        check_results_anywhere(self.messages)


@dataclass
class ChatForm:
    """messages: as a chat has them. paths: of them and of what is in them, by where it stands in the request."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=lambda: dict(NAMES))

    def add(self, item: InputItem, where: str) -> None:
        if item.kind == "function_call":
            self._call(item, where)
        elif item.kind == "function_call_output":
            self._message("tool", item.output or "", f"{where}.output")
            self.messages[-1]["tool_call_id"] = item.call_id
            self.paths[f"messages[{len(self.messages) - 1}].tool_call_id"] = f"{where}.call_id"
        elif item.kind == "reasoning":
            self._think(item)
        elif item.kind == "compaction":
            self._message("assistant", unpacked(item.encrypted_content or ""), f"{where}.encrypted_content")
        else:
            self._message(item.role or "user", item.content or "", f"{where}.content")

    def say(self, instructions: str) -> None:
        self._message("system", instructions, "instructions")

    def _message(self, role: str, content: str | Sequence[InputPart], where: str) -> None:
        thoughts = self._thoughts() if role == "assistant" else {}
        own = f"messages[{len(self.messages)}].content"
        self.paths[own] = where
        self.paths[own.removesuffix(".content")] = where.rpartition(".")[0] or where
        parts = content if isinstance(content, str) else [part.as_chat() for part in content]
        for index, part in enumerate(() if isinstance(content, str) else content):
            if part.file_data is not None:
                self.paths[f"{own}[{index}].image_url"] = f"{where}[{index}].file_data"
        self.messages.append({"role": role, "content": parts, **thoughts})

    def _thoughts(self) -> dict[str, str]:
        """What the assistant thought before it says what comes next."""
        last = self.messages[-1] if self.messages else {}
        if last.keys() != THOUGHTS or last["content"] is not None:
            return {}
        return {"reasoning_content": self.messages.pop()["reasoning_content"]}

    def _think(self, item: InputItem) -> None:
        """Thoughts belong to what the assistant says behind them."""
        if item.thoughts:
            self.messages.append({"role": "assistant", "content": None, "reasoning_content": item.thoughts})

    def _call(self, item: InputItem, where: str) -> None:
        """Calls belong to the assistant's message before them, where there is one."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": None})
        calls = self.messages[-1].setdefault("tool_calls", [])
        self.paths[f"messages[{len(self.messages) - 1}].tool_calls[{len(calls)}].function"] = where
        function = {"name": item.name, "arguments": item.arguments}
        calls.append({"id": item.call_id, "type": "function", "function": function})

    def request(self, body: ResponsesInput, model: str) -> ChatRequest:
        """model: the name of the one that is meant. Raises BadRequest by the names of `body`."""
        given: dict[str, Any] = {
            "model": model,
            "messages": self.messages,
            "tools": [tool.as_chat() for tool in body.tools or ()] or None,
            "tool_choice": _choice(body),
            "parallel_tool_calls": body.parallel_tool_calls,
            "response_format": None if body.text is None else _format(body.text.format),
        }
        if isinstance(body, ResponsesRequest):
            given |= {
                "max_completion_tokens": body.max_output_tokens,
                "temperature": body.temperature,
                "top_p": body.top_p,
                "logprobs": body.wants_logprobs,
                "top_logprobs": body.top_logprobs if body.wants_logprobs else None,
                "stream": body.stream,
            }
        with self.names():
            try:
                return _ConvertedRequest.model_validate(given)
            except ValidationError as error:
                raise describe(error.errors(include_url=False)[0]) from None

    @contextmanager
    def names(self) -> Iterator[None]:
        """What is refused within names the fields of the request, and not those of the chat that was made of it."""
        try:
            yield
        except BadRequest as error:
            if error.param is not None:
                own = self.name(error.param)
                error.message = error.message.replace(f"'{error.param}'", f"'{own}'")
                error.param, error.args = own, (error.message,)
            raise

    def name(self, param: str) -> str:
        known = [path for path in self.paths if re.match(re.escape(path) + r"(?![A-Za-z0-9_])", param)]
        if not known:
            return TOOL.sub(r"\1", param)
        longest = max(known, key=len)
        return self.paths[longest] + param.removeprefix(longest)


def chat_form(items: Sequence[tuple[InputItem, str]], instructions: str | None) -> ChatForm:
    """items: each with its path in the request."""
    form = ChatForm()
    if instructions:
        form.say(instructions)
    for item, where in items:
        form.add(item, where)
    return form


def _choice(body: ResponsesInput) -> Any:
    choice = body.tool_choice
    return (
        choice if choice is None or isinstance(choice, str) else {"type": "function", "function": {"name": choice.name}}
    )


def _format(given: TextFormat | None) -> dict[str, Any] | None:
    if given is None:
        return None
    if given.type != "json_schema":
        return {"type": given.type}
    return {"type": "json_schema", "json_schema": {"name": given.name, "schema": given.schema_, "strict": given.strict}}
