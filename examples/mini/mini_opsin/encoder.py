"""Turns questions and answers into token ids in the chat template's form."""

from __future__ import annotations

import re
from functools import lru_cache

from transformers import PreTrainedTokenizerFast

from mini_opsin.tokenizer import SPACE
from mini_opsin.words import COLOURS, EMOJI, SHAPES, plural

SCHEMA = re.compile(r'^\{|"[a-z_]+"(?=:)')
Span = tuple[int, int]  # first and past-last index


class Encoder:
    """noun_of, colour_of: the shape or emoji, and the colour, that a token names."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.ids = lru_cache(maxsize=200_000)(self._ids)
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.newline = self.ids("\n")
        self.start, self.end = self.vocabulary["<|im_start|>"], self.vocabulary["<|im_end|>"]
        self.vision = (self.vocabulary["<|vision_start|>"], self.vocabulary["<|vision_end|>"])
        self.user = (self.start, *self.ids("user"), *self.newline)
        self.reply = (self.end, *self.newline, self.start, *self.ids("assistant"), *self.newline)
        self.again = (*self.newline, *self.user)
        forms = {SPACE + form: name for name in (*SHAPES, *EMOJI) for form in (name, plural(name))}
        self.noun_of = {self.vocabulary[f]: name for f, name in forms.items() if f in self.vocabulary}
        self.colour_of = {self.vocabulary[SPACE + name]: name for name in COLOURS}

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def written_by_schema(self, answer: str) -> list[bool]:
        """Of each token of an answer in JSON, and of its end: whether it is of the first brace or of a key."""
        found = self.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        spans = [match.span() for match in SCHEMA.finditer(answer)]
        return [*(any(a <= start < b for a, b in spans) for start, _ in found), False]

    def prefix(self, images: int, system: str | None) -> list[list[int]]:
        """The ids before, between and after the images: images + 1 lists."""
        head: list[int] = []
        if system:
            head = [self.start, *self.ids("system"), *self.newline, *self.ids(system), self.end, *self.newline]
        head += self.user
        if not images:
            return [head]
        opening, closing = self.vision
        return [[*head, opening], *[[closing, opening]] * (images - 1), [closing]]

    def branch(self, turns: list[tuple[str, str]]) -> tuple[list[int], list[Span]]:
        """Ids of the turns, and where each answer lies, its end token included."""
        out: list[int] = []
        spans = []
        for i, (question, answer) in enumerate(turns):
            out += (*(self.again if i else ()), *self.ids(question), *self.reply)
            reply = [*self.ids(answer), self.end]
            spans.append((len(out), len(out) + len(reply)))
            out += reply
        return out, spans
