"""The forms in which people have training rows, each to an example.

- messages: OpenAI's chat form, and TRL's, LLaMA-Factory's and ms-swift's with a column of images
- input, preferred_output, non_preferred_output: OpenAI's preferences; prompt, chosen, rejected: TRL's
- prompt, completion: strings, which become a question and an answer, or lists of messages
- conversations: ShareGPT's turns, as LLaVA's data has them
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opsin_plugins.spec import ImageBudget
from opsin_server.chat.fields import shown
from opsin_server.errors import BadRequest
from opsin_server.jobs.examples import (
    Example,
    ReadMessages,
    TrainingExample,
    answered,
    conversation,
    pair,
    read_messages,
)
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.place_images import Raw, column, place_images

IMAGES = ("image", "images")
# What tells a row's form, in the order in which it is looked for; "prompt" is a part of three.
FORMS = {
    "messages": ("messages",),
    "conversations": ("conversations", "system"),
    "preferred_output": ("input", "preferred_output", "non_preferred_output"),
    "chosen": ("prompt", "chosen", "rejected"),
    "completion": ("prompt", "completion"),
}
# What rows have beside what is learned. None of it can change what a model learns.
HARMLESS = (
    *("id", "_id", "uuid", "idx", "index", "name", "split", "subset", "source", "data_source", "url_source", "license"),
    *("metadata", "meta", "tags", "task", "task_type", "category", "language", "created_at", "timestamp", "score"),
    *("dataset", "dataset_name", "prompt_id", "question_id", "image_id"),
    "parallel_tool_calls",  # (there are no tools to call; OpenAI's own example of a preference has it)
)
# What would change it, and is not trained here.
REFUSED = {
    **dict.fromkeys(("tools", "functions", "tool_choice", "function_call", "tool_calls"), "tools"),
    **dict.fromkeys(("videos", "video", "audios", "audio", "objects"), "anything but text and images"),
    **dict.fromkeys(("chat_template_kwargs", "response_format", "kto_tag", "label"), "other objectives or forms"),
}
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_example(row: Raw, budget: ImageBudget, limits: DataLimits) -> Example:
    """budget: of images that do not say. Raises BadRequest, naming the field."""
    row = {key: value for key, value in row.items() if value is not None}
    form = _form(row)
    _check_keys(row, form)
    sources = column(row)

    def read(value: Any, path: str, images: bool = True, tags: bool = False) -> ReadMessages:
        placed = place_images(value, sources if images else (), path, tags)
        return read_messages(placed, path, budget, limits.max_messages)

    return READERS[form](row, read)


Read = Callable[..., ReadMessages]


def _messages(row: Raw, read: Read) -> Example:
    return conversation(read(row["messages"], "messages"))


def _share_gpt(row: Raw, read: Read) -> Example:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise BadRequest("conversations must be a list", param="conversations")
    messages = [_turn(turn, f"conversations[{at}]") for at, turn in enumerate(turns)]
    example = conversation(read(messages, "conversations", tags=True))
    if "system" not in row:
        return example
    told = read([{"role": "system", "content": row["system"]}], "system", images=False).messages
    return TrainingExample((*told, *example.messages), (False, *example.learned))


def _turn(turn: Any, path: str) -> Raw:
    if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or "value" not in turn:
        raise BadRequest(f"{path} must have 'from' and 'value'", param=path)
    if more := sorted({key for key, value in turn.items() if value is not None} - {"from", "value", "weight"}):
        raise BadRequest(f"{path} has {shown(more[0])}, which is not known here", param=f"{path}.{more[0][:80]}")
    if turn["from"] not in SPEAKERS:
        raise BadRequest(
            f"{path}.from is {shown(turn['from'])}: the speakers accepted are {', '.join(SPEAKERS)}",
            param=f"{path}.from",
        )
    return {"role": SPEAKERS[turn["from"]], "content": turn["value"], "weight": turn.get("weight")}


def _preference(row: Raw, read: Read) -> Example:
    given = row.get("input")
    if not isinstance(given, dict) or "messages" not in given:
        raise BadRequest("input must be an object with 'messages'", param="input")
    _refuse({key: value for key, value in given.items() if value is not None}, ("messages", *HARMLESS), "input.")
    outputs = []
    for name in ("preferred_output", "non_preferred_output"):
        output = row.get(name)
        if not isinstance(output, list) or len(output) != 1:
            raise BadRequest(f"{name} must be a list of one message of the assistant's", param=name)
        outputs.append(read(output, name, images=False))
    return pair(read(given["messages"], "input.messages"), *outputs)


def _chosen(row: Raw, read: Read) -> Example:
    for name in ("prompt", "chosen", "rejected"):
        if name not in row:
            raise BadRequest(f"the row has no {name!r}, which one with 'chosen' needs", param=name)
    outputs = [read(_said(row[name], "assistant"), name, images=False) for name in ("chosen", "rejected")]
    return pair(read(_said(row["prompt"], "user"), "prompt"), *outputs)


def _completion(row: Raw, read: Read) -> Example:
    if "prompt" not in row:
        raise BadRequest("the row has a 'completion' and no 'prompt'", param="prompt")
    answer = read(_said(row["completion"], "assistant"), "completion", images=False)
    return answered(read(_said(row["prompt"], "user"), "prompt"), answer)


def _said(value: Any, role: str) -> Any:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


READERS: dict[str, Callable[[Raw, Read], Example]] = {
    "messages": _messages,
    "conversations": _share_gpt,
    "preferred_output": _preference,
    "chosen": _chosen,
    "completion": _completion,
}


def _form(row: Raw) -> str:
    found = [form for form in FORMS if form in row]
    if len(found) > 1:
        raise BadRequest(f"the row has both {found[0]!r} and {found[1]!r}: give one", param=found[1])
    if not found:
        raise BadRequest(
            "the row has no 'messages' (nor 'conversations', 'prompt' and 'completion', 'prompt' with 'chosen' and "
            "'rejected', or 'input' with 'preferred_output' and 'non_preferred_output')",
            param="messages",
        )
    return found[0]


def _check_keys(row: Raw, form: str) -> None:
    _refuse(row, (*FORMS[form], *IMAGES, *HARMLESS), "")


def _refuse(given: Raw, known: tuple[str, ...], prefix: str) -> None:
    """Raises BadRequest for a key that would change what is learned, and for one that is not known."""
    for key, value in given.items():
        path = f"{prefix}{key[:80]}"
        if key in REFUSED:
            if value not in ([], {}, "", False):
                raise BadRequest(f"{path}: rows with {REFUSED[key]} are not trained here", param=path)
        elif key not in known:
            raise BadRequest(f"{shown(path)} is not known here; leave it out or put it under 'metadata'", param=path)
