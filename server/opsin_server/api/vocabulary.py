"""What an engine is told of its tokens, which it knows by number only, so that it can hold answers to grammars."""

from __future__ import annotations

from opsin_server.ipc.messages import Vocabulary
from opsin_server.text.encode_prompt import PromptEncoder


def vocabulary_of(encoder: PromptEncoder) -> tuple[Vocabulary, list[bytes]] | None:
    """And the bytes of each token that can be drawn. None: the model has no token that ends an answer."""
    if not encoder.ends:
        return None
    tokenizer, ids = encoder.tokenizer, range(encoder.vocabulary)
    special = tuple(token for token in ids if tokenizer.is_special(token))
    return Vocabulary(special, encoder.ends), [tokenizer.token_bytes(token) for token in ids]
