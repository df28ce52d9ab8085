"""Conversation to ids, where text is data: what a user types never becomes a special token.

The template sees the real conversation, edits it as its author meant, and tells which characters of the prompt it wrote
itself (see `trusted`); all others are text. The common way is one render and one encode. Where a text holds the string
of an added token, that string is cut out and encoded by a tokenizer that has no added tokens. A special token can still
be formed where a text meets the template's text, or by normalisation. So the markers in the ids must be those that the
template's own characters give by themselves; if they are not, all text is cut out, and then they are, since the
template's part is encoded from the same pieces.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from opsin_plugins.spec import ImageBudget
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.text.continue_final import Ending
from opsin_server.text.conversation import ImagePart, Message, Part, TextPart, ToolCall, VideoPart, VideoWish, texts
from opsin_server.text.prompt_options import PLAIN, PromptOptions
from opsin_server.text.spelled_tools import spelled_out
from opsin_server.text.template import ChatTemplate
from opsin_server.text.tokenizer import Tokenizer
from opsin_server.text.trusted import MAX_MESSAGES, runs, said_in, trust_of

SHAPES = 256  # conversations differ in text much more often than in their roles and parts
LONG = 1000  # messages and parts, or pieces of a prompt, from which on nothing is remembered: each may be a megabyte
AN_IMAGE = ImagePart("", ImageBudget(), "")
A_VIDEO = VideoPart("", VideoWish(), "")


class LostMarkerError(OpsinError):
    """The template makes a special token by an operation that forgets who wrote it: its fault, not the request's."""

    code = "chat_template_marker"


@dataclass(frozen=True)
class Located:
    """A rendered conversation's ids, the characters of `text` that each stands for (as of `Tokenizer.locate_around`;
    (-1, -1) in front of it), and who wrote each character (as in `trusted`)."""

    ids: list[int]
    places: list[tuple[int, int]]
    text: str
    trust: str


class ConversationEncoder:
    """Threads may share one. opens: whether the tokenizer's own opening is put in front, as for models with images."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, opens: bool) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._opens = opens
        self._pattern = tokenizer.added_pattern
        self._check_shape = lru_cache(SHAPES)(self._render_shape)
        self._own_markers = lru_cache(SHAPES)(self._encode_own)

    def ids(
        self, messages: Sequence[Message], continue_final: bool = False, options: PromptOptions = PLAIN
    ) -> list[int]:
        """Image placeholders as the template writes them. Raises BadRequest for what the template refuses.

        continue_final: the prompt ends where the text of the last message, the assistant's, ends.
        """
        check_unicode(texts(messages), "messages")
        messages, options = self._with_tools(messages, options)
        self._check(_shape(messages), continue_final or not options.generation_prompt, options.shape())
        rendered = self._render(messages, continue_final, options)
        own, typed = runs(rendered)
        ids = self._tokenizer.encode_around(*self._cut_out(rendered, own, typed))
        if not self._keeps_markers(ids, own):
            ids = self._tokenizer.encode_around(own, typed)
        return [*self._opening(own), *ids]

    def located_ids(self, messages: Sequence[Message]) -> Located:
        """The whole conversation, without the head of a next turn: ids as by the same steps as in `ids`, and where each
        stands in the text. Raises BadRequest."""
        check_unicode(texts(messages), "messages")
        if len(messages) > MAX_MESSAGES:
            raise BadRequest(f"{len(messages)} messages; the limit is {MAX_MESSAGES}", param="messages")
        self._check(_shape(messages), True, PLAIN)
        rendered = self._template.render(messages, generation_prompt=False)
        own, typed = runs(rendered)
        signed = self._template.render([_signed(m, n) for n, m in enumerate(messages)], generation_prompt=False)
        if runs(signed) != (own, typed):
            raise OpsinError("the chat template writes another prompt where it is told who said what")
        ids, places = self._tokenizer.locate_around(*self._cut_out(rendered, own, typed))
        if not self._keeps_markers(ids, own):
            ids, places = self._tokenizer.locate_around(own, typed)
        opening = self._opening(own)
        return Located([*opening, *ids], [(-1, -1)] * len(opening) + places, str.__str__(rendered), trust_of(signed))

    def _with_tools(
        self, messages: Sequence[Message], options: PromptOptions
    ) -> tuple[Sequence[Message], PromptOptions]:
        """As the template takes them: its own way, or spelled out."""
        called = any(message.role == "tool" or message.tool_calls for message in messages)
        if not (called or options.tools):
            return messages, options
        support = self._template.tools
        if not support.native:
            return spelled_out(messages, options.tools), replace(options, tools=())
        if support.format is not None and support.format.short_ids:
            messages = [with_short_ids(message) for message in messages]
        return messages, options

    def _check(self, shape: tuple[Message, ...], continue_final: bool, options: PromptOptions) -> None:
        check = self._check_shape if len(shape) + sum(len(m.parts) for m in shape) <= LONG else self._render_shape
        check(shape, continue_final, options)

    def _opening(self, own: Sequence[str]) -> list[int]:
        bos = self._tokenizer.names.get("bos_token")
        opens = self._opens and not (bos is not None and own[0].startswith(bos))
        return self._tokenizer.opening if opens else []

    def _render(self, messages: Sequence[Message], continue_final: bool, options: PromptOptions) -> str:
        given = options.for_template()
        if not continue_final:
            return self._template.render(messages, options.generation_prompt, given)
        ending = Ending(messages)
        return ending.cut(self._template.render(ending.messages, generation_prompt=False, variables=given))

    def _cut_out(self, rendered: str, own: Sequence[str], typed: Sequence[str]) -> tuple[list[str], list[str]]:
        """Strings of added tokens that stand in one text are plain; nothing else is looked at."""
        if not any(map(self._pattern.search, typed)):
            return [rendered], []
        around: list[str] = [own[0]]
        plain: list[str] = []
        for text, behind in zip(typed, own[1:], strict=True):
            at = 0
            for found in self._pattern.finditer(text):
                around[-1] += text[at : found.start()]
                plain.append(found[0])
                around.append("")
                at = found.end()
            around[-1] += text[at:] + behind
        return around, plain

    def _keeps_markers(self, ids: Sequence[int], own: Sequence[str]) -> bool:
        """Whether the markers among the ids are those that the template's own characters give by themselves."""
        markers = self._own_markers if len(own) <= LONG else self._encode_own
        return self._markers(ids) == markers(tuple(own))

    def _markers(self, ids: Sequence[int]) -> tuple[int, ...]:
        known = self._tokenizer.marker_ids
        return tuple(i for i in ids if i in known)

    def _encode_own(self, own: tuple[str, ...]) -> tuple[int, ...]:
        return self._markers(self._tokenizer.encode_around(own, [""] * (len(own) - 1)))

    def _render_shape(self, messages: tuple[Message, ...], continue_final: bool, options: PromptOptions) -> None:
        """Renders the shape of a conversation with texts that say nothing. Raises where one of them does not appear,
        or where the template makes a special token in a way that loses who wrote it."""
        mark = f"\ue002{secrets.randbelow(10**18):018d}:"  # as filters for case and blanks leave it
        owners = [n for n, message in enumerate(messages) for part in message.parts if part == SOME_TEXT]
        numbers = iter(range(len(owners)))
        filled = [
            replace(m, parts=tuple(TextPart(f"{mark}{next(numbers)}\ue003") if p == SOME_TEXT else p for p in m.parts))
            for m in messages
        ]
        given = options.for_template()
        rendered = self._template.render(filled, generation_prompt=not continue_final, variables=given)
        for number, owner in enumerate(owners):
            if f"{mark}{number}\ue003" not in rendered:
                what = f"message {owner} ({messages[owner].role})"
                raise BadRequest(f"this model's chat template leaves out the text of {what}", param="messages")
        for text in runs(rendered)[1]:
            if (found := self._pattern.search(text)) is not None:
                raise LostMarkerError(
                    f"the chat template writes {found[0]!r} by a way that typed text may take as well"
                )


SOME_TEXT = TextPart("x")
SHORT_ID = "abcdef123"
A_CALL = ToolCall(SHORT_ID, "x", "{}")


def with_short_ids(message: Message) -> Message:
    """Mistral's templates refuse ids that have not nine letters and digits."""
    calls = tuple(replace(call, id=short_id(call.id)) for call in message.tool_calls)
    return replace(message, tool_calls=calls, tool_call_id=message.tool_call_id and short_id(message.tool_call_id))


def short_id(call_id: str) -> str:
    if len(call_id) == len(SHORT_ID) and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[: len(SHORT_ID)]


def _signed(message: Message, number: int) -> Message:
    """The message, each character of which knows that it is from it."""
    parts = tuple(TextPart(said_in(p.text, number)) if isinstance(p, TextPart) else p for p in message.parts)
    reasoning = None if message.reasoning is None else said_in(message.reasoning, number)
    return replace(message, parts=parts, reasoning=reasoning)


def _shape(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation without what was said in it."""

    def shape(part: Part) -> Part:
        if not isinstance(part, TextPart):
            return A_VIDEO if isinstance(part, VideoPart) else AN_IMAGE
        return (
            SOME_TEXT if part.text.strip() else TextPart(part.text[:1])
        )  # (it may ask whether there is a text at all)

    return tuple(
        Message(
            message.role,
            tuple(map(shape, message.parts)),
            message.reasoning and "x",
            message.is_string,
            tuple(A_CALL for _ in message.tool_calls),
            message.tool_call_id and SHORT_ID,
        )
        for message in messages
    )


def check_unicode(said: Iterable[str], param: str) -> None:
    """Raises BadRequest for what no tokenizer takes."""
    for text in said:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise BadRequest("a text holds half of a surrogate pair", param=param) from error
