"""Conversation to ids, where text is data: what a user types never becomes a special token (DESIGN, 3.10).

The common way is one render and one encode. Strings of added tokens in a text are hidden from the template and encoded
by a tokenizer that has no added tokens. A special token can still be formed: where a text meets the template's text or
another text, by a filter of the template, or by normalisation. So the markers in the ids must be those of the
conversation's skeleton, in which every text is hidden whole; if they are not, the texts are hidden whole as well, and
then they are, since the template's part is encoded from the same pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from opsin_plugins.spec import ImageBudget
from opsin_server.errors import BadRequest
from opsin_server.prompt.ending import Ending
from opsin_server.prompt.markers import Hidden, marker_pattern
from opsin_server.prompt.messages import ImagePart, Message, Part, TextPart, map_texts
from opsin_server.prompt.template import ChatTemplate
from opsin_server.prompt.tokenizer import Tokenizer

Hide = Callable[[str, Hidden], str]

SKELETONS = 256  # conversations differ in text much more often than in their roles and parts
AN_IMAGE = ImagePart("", ImageBudget(), "")


@dataclass(frozen=True)
class Skeleton:
    """What the template writes by itself for conversations of one shape. opening: ids to put in front."""

    markers: tuple[int, ...]
    opening: tuple[int, ...]


class ConversationEncoder:
    """Threads may share one. opens: whether the tokenizer's own opening is put in front, as for models with images."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, opens: bool) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._opens = opens
        self._pattern = marker_pattern(tokenizer.added)
        self._skeleton = lru_cache(SKELETONS)(self._make_skeleton)

    def ids(self, messages: Sequence[Message], continue_final: bool = False) -> list[int]:
        """Image placeholders as the template writes them. Raises BadRequest for what the template refuses.

        continue_final: the prompt ends where the text of the last message, the assistant's, ends.
        """
        _check_unicode(messages)
        for hide in (self._hide_markers, _hide_words, _hide_whole):
            ids = self._encode(messages, hide, continue_final)
            skeleton = self._skeleton(_shape(messages), continue_final)
            if ids is not None and self._markers(ids) == skeleton.markers:
                return [*skeleton.opening, *ids]
        raise BadRequest("this model's chat template takes a text of this conversation apart", param="messages")

    def _encode(self, messages: Sequence[Message], hide: Hide, continue_final: bool) -> list[int] | None:
        """None: the template has taken a hidden text apart."""
        hidden = Hidden()
        found = hidden.split(self._render(map_texts(messages, lambda text: hide(text, hidden)), continue_final))
        return None if found is None else self._tokenizer.encode_around(found[0], [hidden.texts[n] for n in found[1]])

    def _render(self, messages: Sequence[Message], continue_final: bool) -> str:
        if not continue_final:
            return self._template.render(messages)
        ending = Ending(messages)
        return ending.cut(self._template.render(ending.messages, generation_prompt=False))

    def _hide_markers(self, text: str, hidden: Hidden) -> str:
        return self._pattern.sub(lambda found: hidden.hide(found[0]), text)

    def _markers(self, ids: Sequence[int]) -> tuple[int, ...]:
        known = self._tokenizer.marker_ids
        return tuple(i for i in ids if i in known)

    def _make_skeleton(self, messages: tuple[Message, ...], continue_final: bool) -> Skeleton:
        hidden = Hidden()
        owners = [n for n, m in enumerate(messages) for p in m.parts if isinstance(p, TextPart) and p.text.strip()]
        found = hidden.split(self._render(map_texts(messages, lambda text: _hide_whole(text, hidden)), continue_final))
        around, numbers = found or ([""], [])
        for number, owner in enumerate(owners):
            if number not in numbers:
                what = f"message {owner} ({messages[owner].role})"
                raise BadRequest(f"this model's chat template leaves out the text of {what}", param="messages")
        bos = self._tokenizer.names.get("bos_token")
        opens = self._opens and not (bos is not None and around[0].startswith(bos))
        ids = self._tokenizer.encode_around(around, [""] * len(numbers))
        return Skeleton(self._markers(ids), tuple(self._tokenizer.opening) if opens else ())


def _hide_words(text: str, hidden: Hidden) -> str:
    """The blanks around stay visible, for templates that trim."""
    core = text.strip()
    if not core:
        return text
    before, _, after = text.partition(core)
    return before + hidden.hide(core) + after


def _hide_whole(text: str, hidden: Hidden) -> str:
    return hidden.hide(text) if text.strip() else text  # a template may ask whether there is a text at all


def _shape(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation without what users wrote; equal for all that get the same skeleton."""

    def shape(part: Part) -> Part:
        if isinstance(part, ImagePart):
            return AN_IMAGE
        return TextPart("x") if part.text.strip() else part

    return tuple(Message(message.role, tuple(map(shape, message.parts))) for message in messages)


def _check_unicode(messages: Sequence[Message]) -> None:
    for message in messages:
        for part in message.parts:
            if isinstance(part, TextPart) and not part.text.isascii():
                try:
                    part.text.encode()
                except UnicodeEncodeError as error:
                    raise BadRequest("a text holds half of a surrogate pair", param="messages") from error
