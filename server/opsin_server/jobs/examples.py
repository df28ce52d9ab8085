"""What a row of a training file is, whichever form it has there: a conversation, or two to choose between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, TypeAdapter, ValidationError, model_validator

from opsin_plugins.spec import ImageBudget
from opsin_server.chat.describe_error import describe
from opsin_server.chat.fields import unsupported, whole, wrong
from opsin_server.chat.messages import ChatMessage, known
from opsin_server.chat.to_messages import to_messages
from opsin_server.errors import BadRequest
from opsin_server.text.conversation import Message


@dataclass(frozen=True)
class TrainingExample:
    """learned: of each message, whether it is; only the assistant's may be."""

    messages: tuple[Message, ...]
    learned: tuple[bool, ...]


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one conversation."""

    preferred: TrainingExample
    non_preferred: TrainingExample


Example = TrainingExample | PreferencePair


def _weight(value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or whole(value) not in (0, 1)):
        raise unsupported(value, "a weight is 0 or 1")
    return whole(value)


TrainingRole = Literal["system", "developer", "user", "assistant"]


class TrainingMessage(ChatMessage):
    """A chat's message, and whether it is learned: `weight` 0 takes an assistant's out."""

    role: Annotated[TrainingRole, known(TrainingRole, "roles")]
    weight: Annotated[int | None, BeforeValidator(_weight)] = None

    @model_validator(mode="after")
    def _weighs_an_answer(self) -> TrainingMessage:
        if self.tool_calls:
            raise unsupported(
                [call.id for call in self.tool_calls], "rows with tools are not trained here", "tool_calls"
            )
        if self.weight is not None and self.role != "assistant":
            raise wrong(f'only the assistant\'s messages may have one, not "{self.role}"', "weight")
        for index, part in enumerate(self.content if isinstance(self.content, list) else ()):
            if part.type in ("video", "video_url"):
                raise unsupported(part.type, "rows with videos are not trained here", f"content[{index}].type")
        if self.role == "assistant" and not self.content:
            raise wrong("the assistant's text must not be null or empty in training", "content")
        return self


_MESSAGES = TypeAdapter(list[TrainingMessage])


@dataclass(frozen=True)
class ReadMessages:
    """Messages as a row has them, checked. path: where in the row they stand."""

    given: list[TrainingMessage]
    messages: list[Message]
    path: str


def read_messages(value: Any, path: str, budget: ImageBudget, most: int) -> ReadMessages:
    """Raises BadRequest in the words that a chat request's would have."""
    if isinstance(value, list) and len(value) > most:
        raise BadRequest(f"{path} has {len(value):,} messages; the limit is {most:,}", param=path)
    if value == []:
        raise BadRequest(f"{path} is empty", param=path)
    try:
        given = _MESSAGES.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise describe({**first, "loc": (path, *first["loc"])}) from None
    return ReadMessages(given, to_messages(given, budget, path), path)


def conversation(read: ReadMessages) -> TrainingExample:
    """All of the assistant's messages are learned but those of weight 0. Raises BadRequest where the last message is
    not the assistant's."""
    if read.given[-1].role != "assistant":
        at = f"{read.path}[{len(read.given) - 1}]"
        raise BadRequest(f"{at}: the last message must be the assistant's, not the {read.given[-1].role}'s", param=at)
    learned = (message.role == "assistant" and message.weight != 0 for message in read.given)
    return TrainingExample(tuple(read.messages), tuple(learned))


def answered(asked: ReadMessages, answer: ReadMessages) -> TrainingExample:
    """A conversation and what is learned to follow it. Raises BadRequest where it is answered already."""
    if asked.given[-1].role == "assistant":
        at = f"{asked.path}[{len(asked.given) - 1}]"
        raise BadRequest(f"{at}: the last message before an answer must not be the assistant's", param=at)
    whole_row = conversation(answer)
    return TrainingExample((*asked.messages, *answer.messages), (*([False] * len(asked.messages)), *whole_row.learned))


def pair(asked: ReadMessages, preferred: ReadMessages, non_preferred: ReadMessages) -> PreferencePair:
    for read in (asked, preferred, non_preferred):
        for at, message in enumerate(read.given):
            if message.weight is not None:
                where = f"{read.path}[{at}].weight"
                raise BadRequest(f"{where} has no meaning where two answers are compared", param=where)
    return PreferencePair(answered(asked, preferred), answered(asked, non_preferred))


def last_only(example: TrainingExample) -> TrainingExample:
    """Of what is learned, the final turn of the assistant alone."""
    last = max(n for n, message in enumerate(example.messages) if message.role == "assistant")
    return TrainingExample(
        example.messages, tuple(is_learned and n == last for n, is_learned in enumerate(example.learned))
    )


def examples_of(example: Example) -> Sequence[TrainingExample]:
    return (example,) if isinstance(example, TrainingExample) else (example.preferred, example.non_preferred)
