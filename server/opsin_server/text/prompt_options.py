"""What a request sets of its prompt beside the conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

SOME_TOOL = json.dumps({"type": "function", "function": {"name": "x", "description": "x", "parameters": {}}})


@dataclass(frozen=True)
class PromptOptions:
    """tools: in OpenAI's form, each as JSON. variables: of the chat template, by name, which may hold numbers, strings
    and truths. generation_prompt: whether the head of an answer stands at the end, unless one is continued."""

    tools: tuple[str, ...] = ()
    variables: tuple[tuple[str, Any], ...] = ()
    generation_prompt: bool = True

    def for_template(self) -> Mapping[str, Any]:
        """What the template is given. (It must not change what another render is given.)"""
        given: dict[str, Any] = dict(self.variables)
        if self.tools:
            given["tools"] = [json.loads(tool) for tool in self.tools]
        return given

    def shape(self) -> PromptOptions:
        """The same, without what its tools say."""
        return replace(self, tools=(SOME_TOOL,)) if self.tools else self


PLAIN = PromptOptions()
"""Nothing but the conversation."""
