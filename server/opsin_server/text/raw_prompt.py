"""A text that is a prompt as it stands, without a chat template."""

from __future__ import annotations

from opsin_server.text.plain_text import check_unicode
from opsin_server.text.tokenizer import Tokenizer


def raw_ids(tokenizer: Tokenizer, text: str, opening: bool = True, special: bool = False) -> list[int]:
    """opening: with what the tokenizer itself puts in front (BOS in many Llamas). special: strings of special tokens
    become these tokens; else they are text like all other. Raises BadRequest."""
    check_unicode((text,), "prompt")
    front = tokenizer.opening if opening else []
    return [*front, *(tokenizer.encode(text) if special else _typed(tokenizer, text))]


def _typed(tokenizer: Tokenizer, text: str) -> list[int]:
    """As `encode` has it, but for strings of added tokens, which are cut out and spelled."""
    texts, plain, at = list[str](), list[str](), 0
    for found in tokenizer.added_pattern.finditer(text):
        texts.append(text[at : found.start()])
        plain.append(found[0])
        at = found.end()
    ids = tokenizer.encode_around([*texts, text[at:]], plain)
    # A vocabulary may hold its added tokens as ordinary entries too, which a text becomes without a marker's help.
    return ids if tokenizer.marker_ids.isdisjoint(ids) else tokenizer.encode_plain(text)
