"""The ids that end an answer: what the checkpoint's configuration says, its tokenizer, and its chat template.

Each of these alone has been seen to be null, or to name another token, in directories that people have; then answers
ran on until `max_tokens`. So they are added up.
"""

from __future__ import annotations

from collections.abc import Sequence

from opsin_plugins.spec import ModelSpec
from opsin_server.errors import OpsinError
from opsin_server.text.conversation import Message, Role, TextPart
from opsin_server.text.template import ChatTemplate
from opsin_server.text.tokenizer import Tokenizer

ASKED, ANSWERED, ASKED_AGAIN = "7301", "7302", "7303"  # digits: no filter of a template changes them


def answer_ends(spec: ModelSpec, tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """Ids that the model can draw, sorted by who says so: configuration (`ModelSpec.eos`), tokenizer, template."""
    named = tokenizer.token_id(tokenizer.names.get("eos_token"))
    found = dict.fromkeys((*spec.eos, named, end_of_turn(tokenizer, template)))
    return tuple(i for i in found if i is not None and 0 <= i < spec.decoder.vocab)


def end_of_turn(tokenizer: Tokenizer, template: ChatTemplate) -> int | None:
    """The added token that the template writes behind an assistant's message, blanks aside; None: it writes none.

    A template may write it only where another message follows (the oldest one of ChatML does)."""
    turns = [_said("user", ASKED), _said("assistant", ANSWERED), _said("user", ASKED_AGAIN)]
    ends = (_behind_answer(tokenizer, template, turns[:count]) for count in (2, 3))
    return next((end for end in ends if end is not None), None)


def _said(role: Role, text: str) -> Message:
    return Message(role, (TextPart(text),), is_string=True)


def _behind_answer(tokenizer: Tokenizer, template: ChatTemplate, turns: Sequence[Message]) -> int | None:
    try:
        _, found, behind = template.render(turns, generation_prompt=False).rpartition(ANSWERED)
    except OpsinError:  # a template for one turn
        return None
    ids = tokenizer.encode(behind.lstrip()) if found else []
    return ids[0] if ids and ids[0] in tokenizer.marker_ids else None
