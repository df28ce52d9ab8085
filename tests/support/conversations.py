"""A few conversations as OpenAI's clients send them, with the pictures in them, and our prompts of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from opsin_plugins.spec import U8, Expanded
from opsin_server.api.answer.submit import to_prompt
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.text.encode_prompt import PromptEncoder
from support import oracle
from support.talk import assistant, system, user

PICTURES = [oracle.picture(0, 40, 30), oracle.picture(1, 25, 60), oracle.picture(2, 12, 70)]
SHOWN = [Image.fromarray(picture) for picture in PICTURES]


@dataclass(frozen=True)
class Conversation:
    """images: of its messages, in their order."""

    messages: Sequence[dict[str, Any]]
    images: Sequence[U8] = ()

    def told(self, text: str) -> Conversation:
        """Behind a system message."""
        return replace(self, messages=[system(text), *self.messages])


CONVERSATIONS: Mapping[str, Conversation] = {
    "text": Conversation([user("Hello there,  what <b>is</b> a circle?\n")]),
    "told": Conversation([system("Be brief."), user("hello")]),
    "turns": Conversation([user("hello"), assistant("a cat"), user("and  now?")]),
    "picture": Conversation([user(SHOWN[0], "what is it?")], PICTURES[:1]),
    "picture last": Conversation([user("what is this?", SHOWN[1])], PICTURES[1:2]),
    "pictures": Conversation([user(SHOWN[0], "and", SHOWN[1], SHOWN[2], "?")], PICTURES),
    "pictures over turns": Conversation(
        [user(SHOWN[0], "this?"), assistant("yes"), user("that?", SHOWN[1])], PICTURES[:2]
    ),
    "picture alone": Conversation([user(SHOWN[2])], PICTURES[2:]),
}


def encoded(encoder: PromptEncoder, conversation: Conversation) -> oracle.Prompt:
    request = ChatRequest.model_validate({"model": "any", "messages": list(conversation.messages)})
    prompt = encoder.encode(to_prompt(request, None), list(conversation.images))
    sizes = [image.shape[:2] for image in conversation.images]
    made = Expanded(prompt.ids, prompt.spans, prompt.visible)
    rope = encoder.spec.decoder.rope
    return oracle.Prompt(made, prompt.items, prompt.positions, prompt.delta, rope, sizes)


def fitting(encoder: PromptEncoder) -> dict[str, Conversation]:
    """Those that a model can take."""
    return {name: c for name, c in CONVERSATIONS.items() if encoder.takes_images or not c.images}
