"""What each supported family learns of a conversation, with the published ones' chat templates and tokenizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec import ImageBudget
from opsin_server.text.answer_labels import NO_END
from opsin_server.text.conversation import ImagePart, Message, TextPart
from opsin_server.text.encode_prompt import PromptEncoder
from support import oracle
from support.repositories import directories
from support.repositories.catalogue import repositories

# What the template has the model write around an answer.
AROUND = {
    "Qwen/Qwen2-VL-2B-Instruct": ("", "<|im_end|>"),
    "Qwen/Qwen2.5-VL-3B-Instruct": ("", "<|im_end|>"),
    "Qwen/Qwen3-VL-2B-Instruct": ("", "<|im_end|>"),
    "Qwen/Qwen-VL-Chat": ("", "<|im_end|>"),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": ("", "<|eot_id|>"),
    "mistral-community/pixtral-12b": ("", "</s>"),
    "mistralai/Pixtral-12B-2409": ("", "</s>"),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": ("", "</s>"),
    "llava-hf/llava-1.5-7b-hf": (" ", ""),
    "llava-hf/llava-v1.6-mistral-7b-hf": (" ", "</s>"),
    "llava-hf/llava-interleave-qwen-0.5b-hf": (" \n", "<|im_end|>"),
    "HuggingFaceTB/SmolVLM-256M-Instruct": (" ", "<end_of_utterance>"),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": (" ", "<end_of_utterance>"),
    "HuggingFaceM4/Idefics3-8B-Llama3": (" ", "<end_of_utterance>"),
    "meta-llama/Llama-3.2-1B-Instruct": ("", "<|eot_id|>"),
    "mistralai/Mistral-7B-Instruct-v0.3": (" ", "</s>"),
    "Qwen/Qwen2.5-0.5B-Instruct": ("", "<|im_end|>"),
    "Qwen/Qwen3-0.6B": ("", "<|im_end|>"),
}
ANSWERS = ("A cat,  and <|im_end|> a </s> mark.", "日本 4")


def test_no_family_is_left_out() -> None:
    assert set(AROUND) == set(repositories())


@pytest.fixture(scope="module", params=AROUND)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, PromptEncoder]:
    repository = repositories()[request.param]
    folder: Path = tmp_path_factory.mktemp("model") / "model"
    opened = open_model(directories.write(repository, directories.make_model(repository), folder))
    return request.param, PromptEncoder(opened.files, opened.architecture, opened.spec)


def conversation(encoder: PromptEncoder) -> tuple[list[Message], list[np.ndarray]]:
    shown = (ImagePart("", ImageBudget(), "p"),) if encoder.takes_images else ()
    first, last = (Message("assistant", (TextPart(text),), is_string=True) for text in ANSWERS)
    messages = [
        Message("user", (*shown, TextPart("Hello there")), is_string=not shown),
        first,
        Message("user", (TextPart("and?"),), is_string=True),
        last,
    ]
    return messages, [oracle.picture(3, 40, 30)] if shown else []


def test_what_is_learned(family: tuple[str, PromptEncoder]) -> None:
    name, encoder = family
    messages, images = conversation(encoder)
    made = encoder.encode_labelled(messages, images, [False, True, False, True])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], made.labels.astype(int), [0]])))
    told = [
        b"".join(encoder.tokenizer.token_bytes(int(i)) for i in made.prompt.ids[start:end]).decode()
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    lead, end = AROUND[name]
    # (An old SentencePiece puts a blank behind a typed "</s>", as it does in a chat.)
    assert [text.replace("  ", " ") for text in told] == [f"{lead}{a}{end}".replace("  ", " ") for a in ANSWERS]
    assert made.remarks == (() if end else (NO_END,))
    if end:
        last = made.prompt.ids[made.labels][-1]
        assert int(last) in encoder.ends
    for span in made.prompt.spans:
        assert not made.labels[span.start : span.start + span.length].any()


def test_it_is_learned_where_it_is_given(family: tuple[str, PromptEncoder]) -> None:
    """Both answers: what stands before each is the prompt that a server would have."""
    _, encoder = family
    messages, images = conversation(encoder)
    for turn in (1, 3):
        made = encoder.encode_labelled(messages[: turn + 1], images, [n == turn for n in range(turn + 1)])
        prompt = encoder.encode(messages[:turn], images)
        first = int(np.flatnonzero(made.labels)[0])
        assert made.prompt.ids[:first].tolist() == prompt.ids.tolist()
        assert np.array_equal(made.prompt.positions[:, :first], prompt.positions)
        assert made.prompt.spans == prompt.spans
        assert [item.digest for item in made.prompt.items] == [item.digest for item in prompt.items]
