"""What a model thinks before it answers: how its chat template marks that, found out by rendering, and how it is taken
out of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opsin_server.errors import OpsinError
from opsin_server.text.conversation import Message, TextPart

THOUGHT, SAID, HIDDEN = "7315", "7316", "7317"
COMMON = ("<think>", "</think>")  # what most models write
TAIL = 64  # tokens of a prompt in which its last turn may begin to think

_TAG = r"(<[^<>\s]*>|\[[^\[\]\s]*\])"
_LAST_TAG, _FIRST_TAG = re.compile(rf"{_TAG}\s*\Z"), re.compile(rf"\s*{_TAG}")

Show = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class ReasoningFormat:
    begin: str
    end: str


def observe_reasoning(show: Show) -> ReasoningFormat | None:
    """show: renders a conversation without the head of an answer, and raises OpsinError where it cannot. None: the
    template knows of no thoughts."""
    user = Message("user", (TextPart("7301"),), is_string=True)
    thinking = Message("assistant", (TextPart(SAID),), THOUGHT, is_string=True)
    shown = _shown(show, [user, thinking])
    if THOUGHT in shown:
        before, _, behind = shown.partition(THOUGHT)
        begin, end = _LAST_TAG.search(before), _FIRST_TAG.match(behind)
        both_think = begin and end and "think" in begin[1].lower() and "think" in end[1].lower()
        return ReasoningFormat(begin[1], end[1]) if begin and end and both_think else None
    written = Message("assistant", (TextPart(f"{COMMON[0]}{HIDDEN}{COMMON[1]}{SAID}"),), is_string=True)
    shown = _shown(show, [user, written, user])
    return ReasoningFormat(*COMMON) if SAID in shown and HIDDEN not in shown else None


def _shown(show: Show, messages: Sequence[Message]) -> str:
    try:
        return str.__str__(show(messages))
    except OpsinError:
        return ""


@dataclass(frozen=True)
class ReasoningPiece:
    thoughts: str = ""
    text: str = ""


class ReasoningReader:
    """Of one answer. inside: its prompt has begun to think already. Blanks around thoughts are dropped.
    tokens: that the thoughts took, with what stands around them."""

    def __init__(self, form: ReasoningFormat, inside: bool) -> None:
        self._form = form
        self._held = ""
        self._state = "inside" if inside else "start"
        self._thought = False  # whether anything was
        self.tokens = 0

    @property
    def inside(self) -> bool:
        return self._state == "inside"

    def push(self, text: str, tokens: int = 0) -> ReasoningPiece:
        """tokens: that the text was made of."""
        self._held += text
        self.tokens += tokens if self._state in ("start", "inside") else 0
        return self._advance(last=False)

    def finish(self) -> ReasoningPiece:
        return self._advance(last=True)

    def _advance(self, last: bool) -> ReasoningPiece:
        thoughts = ""
        if self._state == "start":
            self._start(last)
        if self._state == "inside":
            thoughts = self._inside(last)
        if self._state == "behind":
            self._held = self._held.lstrip()
            self._state = "text" if self._held or last else "behind"
        if self._state != "text":
            return ReasoningPiece(thoughts)
        text, self._held = self._held, ""
        return ReasoningPiece(thoughts, text)

    def _start(self, last: bool) -> None:
        """An answer that begins with something else has no thoughts."""
        start = self._held.lstrip()
        if start.startswith(self._form.begin):
            self._held, self._state = start[len(self._form.begin) :], "inside"
        elif last or not self._form.begin.startswith(start):
            self._state, self.tokens = "text", 0

    def _inside(self, last: bool) -> str:
        thoughts, end, behind = self._held.partition(self._form.end)
        if end:
            self._held, self._state = behind, "behind"
            return self._trimmed(thoughts.rstrip())
        keep = 0 if last else _overlap(thoughts, self._form.end)
        certain = thoughts[: len(thoughts) - keep].rstrip()
        self._held = "" if last else thoughts[len(certain) :]
        return self._trimmed(certain)

    def _trimmed(self, thoughts: str) -> str:
        if not self._thought:
            thoughts = thoughts.lstrip()
        self._thought = self._thought or bool(thoughts)
        return thoughts


def _overlap(text: str, mark: str) -> int:
    """How many characters at the text's end may be the beginning of a mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
