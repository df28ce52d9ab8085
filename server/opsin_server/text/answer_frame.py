"""What a chat template itself writes around an answer, and the model writes when it is served: found out by rendering.

A prompt ends with the head of the assistant's turn. What stands between that head and the answer's text in a rendered
conversation (a blank, the marks of an empty thought) and what stands behind it through the end token is the model's to
write, so it is learned as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from opsin_server.errors import OpsinError
from opsin_server.text.conversation import Message, Role, TextPart
from opsin_server.text.template import ChatTemplate
from opsin_server.text.tokenizer import Tokenizer
from opsin_server.text.trusted import said_in, trust_of

ASKED, THOUGHT, ANSWERED, ASKED_AGAIN = "7301", "7304", "7302", "7303"  # digits: no filter changes them
ANSWER = 1  # the answer's place among the messages below


@dataclass(frozen=True)
class AnswerFrame:
    """What was seen in a few conversations, the longest first. heads: what a prompt has behind a question. leads: what
    stands between that and an answer. closings: what stands behind an answer, through the first of `ends`;
    always_closes: wherever the answer stood. is_prefix: whether a conversation goes on where a prompt ends; where not
    (templates that open a thought in prompts alone), an answer is learned behind another head than it is given."""

    heads: tuple[str, ...]
    leads: tuple[str, ...]
    closings: tuple[str, ...]
    ends: tuple[int, ...]
    always_closes: bool
    is_prefix: bool


def answer_frame(tokenizer: Tokenizer, template: ChatTemplate, ends: Sequence[int]) -> AnswerFrame:
    """ends: ids that end an answer."""
    seen = list(_rendered(template))
    goes_on = [(head, before) for head, before, _ in seen if before.startswith(head)]
    closings = [_through_end(tokenizer, behind, ends) for _, _, behind in seen]
    return AnswerFrame(
        heads=_longest_first(head for head, _ in goes_on),
        leads=_longest_first(before[len(head) :] for head, before in goes_on),
        closings=_longest_first(closing for closing in closings if closing is not None),
        ends=tuple(ends),
        always_closes=None not in closings,
        is_prefix=len(goes_on) == len(seen),
    )


def _longest_first(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(texts), key=len, reverse=True))


def _rendered(template: ChatTemplate) -> Iterator[tuple[str, str, str]]:
    """Of a few conversations: what a prompt has behind the question, what stands there in front of the answer, and what
    behind the answer."""
    for reasoning in (None, said_in(THOUGHT, ANSWER)):
        answer = Message("assistant", (TextPart(said_in(ANSWERED, ANSWER)),), reasoning, is_string=True)
        turns = [_said("user", ASKED), answer, _said("user", ASKED_AGAIN)]
        for count in (2, 3):
            try:
                asked = str.__str__(template.render(turns[:1])).rpartition(ASKED)
                shown = template.render(turns[:count], generation_prompt=False)
            except OpsinError:  # a template for one turn
                continue
            text, trust = str.__str__(shown), trust_of(shown)
            first = trust.find(trust_of(said_in("x", ANSWER)))
            if first < 0 or not asked[1]:
                continue
            before = text[:first].rpartition(ASKED)[2]
            behind = text.rpartition(ANSWERED)[2]
            yield asked[2], before, behind[: len(behind.partition(ASKED_AGAIN)[0])]


def _said(role: Role, text: str) -> Message:
    return Message(role, (TextPart(text),), is_string=True)


def _through_end(tokenizer: Tokenizer, behind: str, ends: Sequence[int]) -> str | None:
    """The template's text behind an answer through the first end token; None: there is none."""
    ids, places = tokenizer.locate_around([behind], [])
    return next((behind[:end] for i, (_, end) in zip(ids, places, strict=True) if i in ends), None)
