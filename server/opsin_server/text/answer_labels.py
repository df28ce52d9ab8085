"""Which tokens of a rendered conversation are the assistant's to learn: its text, what the template has the model write
in front of it, and the end of its turn.

The template may trim an answer, cut a thought out of it or change its letters: each character still knows which message
it is from (see `trusted`). Where an operation of the template forgets that, or where one token holds text of two
writers, the conversation is refused: a label is right, or there is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opsin_server.errors import BadRequest
from opsin_server.text.answer_frame import AnswerFrame
from opsin_server.text.conversation import Message, TextPart
from opsin_server.text.plain_text import Located
from opsin_server.text.trusted import FIRST_MESSAGE, OWN, TEXT

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

_NUMBERS = re.compile(r"\d+")  # what a template counts (turns, pictures) is nobody's text

NO_END = "the chat template writes no end token behind an answer: the model does not learn to stop there"
INSIDE = (
    "an answer begins inside of a token with which its prompt ends: it is served in other tokens than it is learned"
)
OTHER_HEAD = "the chat template opens an answer in another way in a prompt than in a conversation"


@dataclass(frozen=True)
class AnswerLabels:
    """Of each id. learned: to be learned. unlearned: it holds text of the assistant that is not. remarks: what is not
    wrong, and may surprise."""

    learned: Bools
    unlearned: Bools
    remarks: tuple[str, ...]


def answer_labels(
    located: Located, messages: Sequence[Message], learned: Sequence[bool], frame: AnswerFrame
) -> AnswerLabels:
    """learned: of each message, whether it is; only the assistant's may be. Raises BadRequest."""
    said = np.frombuffer(located.trust.encode("utf-32-le"), np.uint32)
    is_learned = np.zeros(len(said), bool)
    starts: list[int] = []
    remarks = set() if frame.is_prefix else {OTHER_HEAD}
    for number, message in enumerate(messages):
        if not learned[number]:
            continue
        first, last = _answer(located, said, number, message)
        start, end = _start(located, first, frame), _end(located, last, frame)
        if end == last and located.trust[last : last + 1] in ("", OWN):
            remarks.add(NO_END)
        is_learned[start:end] = True
        starts.append(start)
    learns = _held(located.places, is_learned)
    _check_writers(located, said, is_learned, learns)
    bounds = np.asarray(located.places, np.int64).reshape(-1, 2)
    if any(np.any((bounds[:, 0] < start) & (start < bounds[:, 1])) for start in starts):
        remarks.add(INSIDE)
    answers = [FIRST_MESSAGE + n for n, message in enumerate(messages) if message.role == "assistant"]
    unlearned = _held(located.places, np.isin(said, answers) & ~is_learned) & ~learns
    return AnswerLabels(learns, unlearned, tuple(sorted(remarks)))


def _answer(located: Located, said: npt.NDArray[np.uint32], number: int, message: Message) -> tuple[int, int]:
    """The first character of a message's text and the one behind its last. Raises BadRequest where they are not
    known."""
    where = np.flatnonzero(said == FIRST_MESSAGE + number)
    what = f"messages[{number}]"
    shown = _weight("".join(located.text[at] for at in where))
    given = _weight(message.reasoning or "") + sum(_weight(p.text) for p in message.parts if isinstance(p, TextPart))
    if not given:
        raise BadRequest(f"{what}: the assistant's text is empty: there is nothing to learn", param="messages")
    if shown > given:
        raise BadRequest(f"{what}: the chat template writes the assistant's text more than once", param="messages")
    forgotten = _NUMBERS.sub("", "".join(located.text[at] for at in np.flatnonzero(said == ord(TEXT))))
    if shown < given and _weight(forgotten):
        raise BadRequest(
            f"{what}: the chat template changes the assistant's text in a way that hides where it stands "
            f"({given - shown} of its {given} characters)",
            param="messages",
        )
    if not len(where):
        raise BadRequest(f"{what}: the chat template leaves out the assistant's text", param="messages")
    first, last = int(where[0]), int(where[-1]) + 1
    within = said[first:last]
    if not np.isin(within, (ord(OWN), FIRST_MESSAGE + number)).all():
        raise BadRequest(f"{what}: the chat template writes other text within the assistant's", param="messages")
    return first, last


def _weight(text: str) -> int:
    """Characters, without blanks: templates trim them."""
    return sum(map(len, text.split()))


def _start(located: Located, first: int, frame: AnswerFrame) -> int:
    """Where an answer begins that is given: behind what a prompt ends with."""
    begin = len(located.trust[:first].rstrip(OWN))
    own = located.text[begin:first]
    heads = [begin + own.rfind(head) + len(head) for head in frame.heads if head and head in own][:1]
    return min([first, *heads, *(first - len(lead) for lead in frame.leads if own.endswith(lead))])


def _end(located: Located, last: int, frame: AnswerFrame) -> int:
    """Behind the end token of the template, where one follows."""
    trust = located.trust[last:]
    stop = last + len(trust) - len(trust.lstrip(OWN))
    if not frame.always_closes:
        own = located.text[last:stop]
        return last + next((len(closing) for closing in frame.closings if own.startswith(closing)), 0)
    ends = (
        end for i, (start, end) in zip(located.ids, located.places, strict=True)
        if i in frame.ends and last <= start and end <= stop
    )  # fmt: skip
    return next(ends, last)


def _held(places: Sequence[tuple[int, int]], chars: Bools) -> Bools:
    """Of each token, whether it stands for one of these characters. One of no character stands before its own."""
    before: Counts = np.concatenate([[0], np.cumsum(chars)])
    bounds = np.asarray(places, np.int64).reshape(-1, 2)
    start = np.clip(bounds[:, 0], 0, len(chars))
    end = np.clip(np.maximum(bounds[:, 1], bounds[:, 0] + 1), 0, len(chars))
    return before[end] > before[start]


def _check_writers(located: Located, said: npt.NDArray[np.uint32], is_learned: Bools, learns: Bools) -> None:
    blank = np.array([char.isspace() for char in located.text], bool)
    foreign = (said != ord(OWN)) & ~is_learned & ~((said == ord(TEXT)) & blank)
    for at in np.flatnonzero(learns & _held(located.places, foreign)):
        start, end = located.places[at]
        raise BadRequest(
            f"the token {located.text[start:end]!r} holds text to be learned and text that is not: nothing of the "
            "chat template's stands between the two",
            param="messages",
        )
