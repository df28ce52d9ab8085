"""Finds out at load, by rendering, how a chat template wants its conversations: nothing is guessed from its source."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from opsin_plugins.spec import SpecError
from opsin_server.errors import OpsinError
from opsin_server.text.conversation import Message, Part, Role, TextPart, ToolCall, VideoPart
from opsin_server.text.merge_turns import fold_system, merge_turns, one_text
from opsin_server.text.trusted import joined, own

Form = Literal["parts", "text"]
FORMS: tuple[Form, ...] = ("parts", "text")


@dataclass(frozen=True)
class TemplateFormat:
    """forms: whether a role's content may be a list of parts, a string or either. Where it may be either it is what the
    client sent, since a template may treat the two in two ways. single: roles of whose list the second text would be
    lost."""

    forms: Mapping[Role, tuple[Form, ...]] = field(default_factory=dict)
    single: frozenset[Role] = frozenset()
    folds_system: bool = False
    merges: bool = False

    def arrange(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The `messages` that the template is given."""
        turns = fold_system(messages) if self.folds_system else list(messages)
        return [self._turn(message) for message in (merge_turns(turns) if self.merges else turns)]

    def _turn(self, message: Message) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": ROLES[message.role], "content": self._content(message)}
        if message.tool_calls:
            turn["tool_calls"] = [_call(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        if message.reasoning is not None:  # the names under which transformers hands it over
            turn |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
        return turn

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        parts, accepted = message.parts, self.forms.get(message.role, FORMS[::-1] if message.role == "tool" else FORMS)
        sent: Form = "text" if message.is_string else "parts"
        if (sent if sent in accepted else accepted[0]) == "text":
            return joined([part.text for part in parts if isinstance(part, TextPart)])
        parts = one_text(parts) if message.role in self.single else parts
        return [_part(part) for part in parts]


# Templates build special tokens of these ("<|" + role + "|>"): they are no text of a user's.
ROLES: Mapping[Role, str] = {
    "system": own("system"),
    "user": own("user"),
    "assistant": own("assistant"),
    "tool": own("tool"),
}
IMAGE, VIDEO, TEXT = own("image"), own("video"), own("text")


def _part(part: Part) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"type": TEXT, "text": part.text}
    return {"type": VIDEO if isinstance(part, VideoPart) else IMAGE}


def _call(call: ToolCall) -> dict[str, Any]:
    """In OpenAI's form, but that the arguments are no text: as transformers hands it over."""
    return {
        "type": own("function"),
        "id": call.id,
        "function": {"name": call.name, "arguments": json.loads(call.arguments)},
    }


Show = Callable[[Sequence[Message], TemplateFormat], str]

# The shortest conversation in which a role may speak.
PLACES: Mapping[Role, tuple[Role, ...]] = {
    "user": ("user",),
    "system": ("system", "user"),
    "assistant": ("user", "assistant", "user"),
}
ALTERNATION: tuple[tuple[Role, ...], ...] = (("user", "user"), ("user", "assistant", "assistant", "user"))


def observe(show: Show) -> TemplateFormat:
    """Raises SpecError when the template cannot show what a user says."""
    template_format = TemplateFormat()
    for role, place in PLACES.items():
        forms = tuple(form for form in FORMS if _shows(show, _given(template_format, role, (form,)), place))
        if forms:
            template_format = _given(template_format, role, forms)
        elif role == "system":
            template_format = replace(template_format, folds_system=True)
        elif role == "user":
            raise SpecError(f"the chat template renders no user message: {_failure(show, template_format)}")
    listed = [role for role, forms in template_format.forms.items() if "parts" in forms]
    single = frozenset(role for role in listed if not _shows(show, template_format, PLACES[role], twice=role))
    merges = not all(_shows(show, template_format, turns) for turns in ALTERNATION)
    return replace(template_format, single=single, merges=merges)


PRINTED = re.compile(r"""['"]text['"]\s*:""", re.IGNORECASE)  # a list of parts, as Python or as JSON


def _given(template_format: TemplateFormat, role: Role, forms: tuple[Form, ...]) -> TemplateFormat:
    return replace(template_format, forms={**template_format.forms, role: forms})


def _shows(show: Show, template_format: TemplateFormat, roles: Sequence[Role], twice: Role | None = None) -> bool:
    """Whether every text arrives in the prompt, as text and not as the print of a list."""
    messages: list[Message] = []
    texts: list[str] = []
    for role in roles:
        own = [f"{7301 + len(texts) + i}" for i in range(2 if role == twice else 1)]  # digits: filters keep them
        texts += own
        messages.append(Message(role, tuple(map(TextPart, own))))
    try:
        shown = show(messages, template_format)
    except OpsinError:
        return False
    return all(text in shown for text in texts) and not PRINTED.search(shown)


def _failure(show: Show, template_format: TemplateFormat) -> str:
    try:
        show([Message("user", (TextPart("7301"),))], template_format)
    except OpsinError as error:
        return error.message
    return "its text does not appear in the prompt"
