"""Finds where the last message's text ends in a rendered conversation, so that the model goes on from there.

A mark is put behind that text before the conversation is rendered, and the prompt is cut at the mark. A blank follows
the mark: if it is gone, the template trims its texts, and the blanks in front of the mark are trimmed as well. So it is
done by `apply_chat_template(continue_final_message=True)` of transformers, whose prompts these are.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from opsin_server.errors import BadRequest
from opsin_server.text.conversation import Message, TextPart


class Ending:
    """messages: the conversation, marked. Raises BadRequest where the last message is not the assistant's text."""

    def __init__(self, messages: Sequence[Message]) -> None:
        if not messages or messages[-1].role != "assistant":
            raise BadRequest("continue_final_message needs a last message from the assistant", param="messages")
        *before, last = messages
        places = [n for n, part in enumerate(last.parts) if isinstance(part, TextPart)]
        if not places:
            raise BadRequest("continue_final_message: the last message holds no text to continue", param="messages")
        parts = list(last.parts)
        part = parts[places[-1]]
        assert isinstance(part, TextPart)
        self._text = part.text.strip()
        self._mark = f"\ue004{secrets.randbelow(10**18):018d}\ue005"  # no filter for case or blanks changes it
        parts[places[-1]] = TextPart(f"{part.text}{self._mark} ")
        self.messages = [*before, replace(last, parts=tuple(parts))]

    def cut(self, rendered: str) -> str:
        """The rendered conversation up to the mark. Raises BadRequest where the text does not stand there once."""
        at = rendered.find(self._mark)
        if rendered.count(self._mark) != 1 or self._text not in rendered:
            raise BadRequest(
                "continue_final_message: this model's chat template changes or repeats the text of the last message",
                param="messages",
            )
        if not rendered.startswith(" ", at + len(self._mark)):
            at = len(rendered[:at].rstrip())
        return rendered[:at]  # a slice, so that a `Trusted` stays one
