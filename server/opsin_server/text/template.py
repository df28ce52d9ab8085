"""A model's chat template: a conversation to the text of its prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from opsin_plugins.spec import Architecture, ModelFiles, SpecError
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.text.conversation import Message, texts
from opsin_server.text.merge_turns import fold_system
from opsin_server.text.reasoning import observe_reasoning
from opsin_server.text.sandbox import Program, RefusalError
from opsin_server.text.template_budget import TemplateStopError
from opsin_server.text.template_format import TemplateFormat, observe
from opsin_server.text.tool_format import Tools, observe_tools
from opsin_server.text.trusted import own

FRAME = 100  # what a message or a part weighs beside its text: its names, and their places


class ChatTemplate:
    """names: bos_token, eos_token and so on, as variables of the template. Threads may share one."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        self._program = Program(source)
        self._variables = {name: own(text) for name, text in names.items()} | {"tools": None, "documents": None}
        self.template_format = observe(self._show)
        self.tools = observe_tools(self._show_tools)
        self.reasoning = observe_reasoning(lambda messages: self.render(messages, False))

    def render(
        self, messages: Sequence[Message], generation_prompt: bool = True, variables: Mapping[str, Any] | None = None
    ) -> str:
        """Raises BadRequest with the template's own message when it refuses the conversation.

        generation_prompt: whether the head of the assistant's next turn stands at the end. variables: `tools`, and
        what a request may set of the template's own.

        A system message may be refused in some company only (Llama 3.2: beside pictures). It is then tried once more in
        front of the first user turn.
        """
        try:
            return self._show(messages, self.template_format, generation_prompt, variables)
        except BadRequest as refused:
            if not isinstance(refused.__cause__, RefusalError) or all(m.role != "system" for m in messages):
                raise
            try:
                return self._show(fold_system(messages), self.template_format, generation_prompt, variables)
            except BadRequest:
                raise refused from refused.__cause__

    def _show_tools(self, messages: Sequence[Message], tools: Tools | None) -> str:
        return self.render(messages, False, {"tools": tools})

    def _show(
        self,
        messages: Sequence[Message],
        template_format: TemplateFormat,
        generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        size = sum(map(len, texts(messages))) + sum(FRAME * (1 + len(message.parts)) for message in messages)
        size += len(json.dumps(variables)) if variables else 0
        try:
            given = {"messages": template_format.arrange(messages), "add_generation_prompt": generation_prompt}
            return self._program.run({**self._variables, **(variables or {}), **given}, size)
        except OpsinError:
            raise
        except RefusalError as refusal:
            raise BadRequest(str(refusal), param="messages") from refusal
        except (SecurityError, RecursionError, MemoryError) as error:
            raise TemplateStopError(f"the chat template was stopped: {type(error).__name__}") from error
        except Exception as error:  # a stranger's program may run into anything
            # Jinja's own messages name types and fields; others may print objects with their addresses.
            what = str(error) if isinstance(error, jinja2.TemplateError) else type(error).__name__
            raise BadRequest(f"the chat template cannot render this conversation: {what}", param="messages") from error


def read_chat_template(files: ModelFiles, architecture: Architecture, names: Mapping[str, str]) -> ChatTemplate:
    """The directory's template, or the family's own for directories without one."""
    source = files.chat_template if files.chat_template is not None else architecture.chat_template(files)
    if source is None:
        raise SpecError(
            f"{files.directory} has no chat template, and {architecture.name} brings none: put a chat_template.jinja "
            "there"
        )
    return ChatTemplate(source, names)
