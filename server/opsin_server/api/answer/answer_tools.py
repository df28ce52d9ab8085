"""The tools of a request: how its prompt shows them, what its answer is held to, and how calls are read from it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.api.schemas.tools import NamedChoice, Tool
from opsin_server.errors import BadRequest
from opsin_server.guided.grammar import Grammar
from opsin_server.guided.schema_form import check_form
from opsin_server.guided.tool_grammar import (
    CallWords,
    ToolFunction,
    calls_grammar,
    either_grammar,
    free_or_calls_grammar,
)
from opsin_server.text.encode_prompt import PromptEncoder
from opsin_server.text.prompt_options import PromptOptions
from opsin_server.text.tokenizer import Tokenizer
from opsin_server.text.tool_format import CALL_ID, ToolFormat
from opsin_server.text.tool_reader import ToolCallReader


@dataclass(frozen=True)
class AnswerTools:
    """form: in which the model's template writes calls. must: whether the answer is nothing but calls. first: the place
    of the first tool among the request's."""

    tools: tuple[Tool, ...]
    form: ToolFormat
    must: bool
    parallel: bool
    first: int = 0

    def reader(self) -> ToolCallReader:
        return ToolCallReader(self.form, self._new_id, [tool.function.name for tool in self.tools], self.must)

    def _new_id(self) -> str:
        return secrets.token_hex(5)[:9] if self.form.short_ids else f"call_{secrets.token_hex(12)}"

    @property
    def marks(self) -> tuple[str, ...]:
        """What stands around calls."""
        return self.form.begin, self.form.middle, self.form.between, self.form.end

    def grammar(self, tokenizer: Tokenizer, answer: Grammar | None) -> Grammar | None:
        """answer: what it is held to where it calls nothing. None: it is free. Raises BadRequest."""
        form = self.form
        words = CallWords(
            form.begin, form.middle, form.between, form.end, form.opener, CALL_ID, form.kind == "pythonic",
            tokenizer.split_special,
        )  # fmt: skip
        functions = [_function(tool, number) for number, tool in enumerate(self.tools, self.first)]
        if self.must:
            return calls_grammar(words, functions, self.parallel)
        if answer is not None:
            return either_grammar(calls_grammar(words, functions, self.parallel), answer)
        if any(tool.function.strict for tool in self.tools):
            return free_or_calls_grammar(words, functions, self.parallel)
        return None


def answer_tools(body: ChatRequest, encoder: PromptEncoder) -> AnswerTools | None:
    """None: the answer may call none. Raises BadRequest."""
    choice = body.tool_choice
    for number, tool in enumerate(body.tools or ()):
        check_form(tool.function.parameters or {}, _param(number))
    if not body.tools or choice == "none":
        return None
    form = encoder.template.tools.format
    if form is None:
        raise BadRequest(
            "This model's chat template writes calls of tools in a form that is not read here", param="tools"
        )
    tools = tuple(body.tools)
    if isinstance(choice, NamedChoice):
        names = [tool.function.name for tool in tools]
        if choice.function.name not in names:
            message = f"There is no tool {choice.function.name!r} in 'tools'"
            raise BadRequest(message, param="tool_choice.function.name")
        place = names.index(choice.function.name)
        return AnswerTools(tools[place : place + 1], form, must=True, parallel=False, first=place)
    return AnswerTools(tools, form, choice == "required", body.parallel_tool_calls is not False)


def prompt_options(body: ChatRequest) -> PromptOptions:
    """All tools are shown, also where one must be called; where none may be, none is."""
    tools = () if body.tool_choice == "none" else tuple(tool.as_json() for tool in body.tools or ())
    variables = tuple(sorted((body.chat_template_kwargs or {}).items()))
    return PromptOptions(tools, variables, generation_prompt=body.add_generation_prompt is not False)


def _function(tool: Tool, number: int) -> ToolFunction:
    return ToolFunction(tool.function.name, tool.function.parameters, _param(number))


def _param(number: int) -> str:
    return f"tools[{number}].function.parameters"
