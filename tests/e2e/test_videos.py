"""A Qwen3-VL with random weights, served as a user serves it: a file and frames in, transformers' own answer out."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from opsin_plugins.spec import U8
from support import videos
from support.encoded import ask_greedily
from support.repositories import directories
from support.repositories.catalogue import repositories
from support.served import Served
from support.talk import data_url

TOKENS = 8
MP4 = videos.encoded(videos.frames(17, 48, 64), fps=4)


@dataclass
class Qwen:
    server: Served
    directory: Path
    theirs: Any
    processor: Any


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qwen]:
    repository = repositories()["Qwen/Qwen3-VL-2B-Instruct"]
    model = directories.make_model(repository)
    directory = directories.write(repository, model, tmp_path_factory.mktemp("qwen") / "published")
    server = Served(str(directory), "--served-model-name", "tiny", "--max-context", "1024", "--dtype", "float32")
    try:
        yield Qwen(server, directory, model.eval(), videos.whole_processor(directory, "qwen3_vl"))
        server.wait_idle()
        server.close()
    finally:
        server.discard()


def turn(*parts: dict[str, Any] | str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


def file_part(**fields: Any) -> dict[str, Any]:
    url = "data:video/mp4;base64," + base64.b64encode(MP4).decode()
    return {"type": "video_url", "video_url": {"url": url}, **fields}


@torch.no_grad()
def theirs(qwen: Qwen, text: str, pictures: U8, rate: float, images: Any = None, **how: Any) -> tuple[int, list[int]]:
    """Tokens of the prompt, and what is generated."""
    about = {"total_num_frames": len(pictures), "fps": rate, "frames_indices": list(range(len(pictures)))}
    inputs = qwen.processor(
        text=[text], images=images, videos=[pictures], video_metadata=[[about]], return_tensors="pt", **how
    )
    out = qwen.theirs.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return length, out[0, length:].tolist()


def rendered(qwen: Qwen, *kinds: str) -> str:
    parts = [{"type": kind} if kind in ("video", "image") else {"type": "text", "text": kind} for kind in kinds]
    turns = [{"role": "user", "content": parts}]
    return qwen.processor.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def assert_same(qwen: Qwen, answer: Any, expected: tuple[int, list[int]]) -> None:
    length, ids = expected
    assert answer.usage.prompt_tokens == length
    tokenizer = qwen.processor.tokenizer
    said = [bytes(token.bytes).decode("utf-8", "replace") for token in answer.choices[0].logprobs.content]
    assert "".join(said) == tokenizer.decode(ids, skip_special_tokens=True)


def test_the_list_of_models_says_that_it_takes_videos(qwen: Qwen) -> None:
    (model,) = qwen.server.client().models.list().data
    assert model.architecture["input_modalities"] == ["text", "image", "video"]  # type: ignore[attr-defined]
    assert model.limit_mm_per_prompt == {"image": 32, "video": 4}  # type: ignore[attr-defined]


def test_a_file_and_a_picture_are_answered_as_in_transformers(qwen: Qwen) -> None:
    picture = np.asarray(videos.frames(1, 40, 40, 7)[0])
    shown = {"type": "image_url", "image_url": {"url": data_url(Image.fromarray(picture))}}
    answer = ask_greedily(qwen.server, turn(file_part(fps=1), shown, "what is it?"), TOKENS)
    text = rendered(qwen, "video", "image", "what is it?")
    how = {"do_sample_frames": True, "fps": 1}
    expected = theirs(qwen, text, videos.decoded(MP4), 4.0, [Image.fromarray(picture)], **how)
    assert_same(qwen, answer, expected)
    assert answer.usage.prompt_tokens_details.image_tokens > 50
    again = ask_greedily(qwen.server, turn(file_part(fps=1), shown, "what is it?"), TOKENS)
    assert again.choices[0].message.content == answer.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 50


def test_frames_are_answered_as_in_transformers(qwen: Qwen) -> None:
    pictures = videos.frames(5, 48, 64, 3)
    urls = [data_url(Image.fromarray(picture)) for picture in pictures]
    answer = ask_greedily(qwen.server, turn("this", {"type": "video", "video": urls, "fps": 1}), TOKENS)
    expected = theirs(qwen, rendered(qwen, "this", "video"), pictures, 1.0, do_sample_frames=False)
    assert_same(qwen, answer, expected)


def test_a_video_is_embedded(qwen: Qwen) -> None:
    client = qwen.server.client()
    found = [
        client.embeddings.create(model="tiny", input=[part], encoding_format="float")  # type: ignore[list-item]
        for part in (file_part(), file_part(), file_part(num_frames=4))
    ]
    first, second, other = (np.array(one.data[0].embedding) for one in found)
    assert np.allclose(first, second, atol=1e-5)
    assert not np.allclose(first, other, atol=1e-3)
    assert found[0].usage.prompt_tokens > found[2].usage.prompt_tokens


def test_a_file_by_its_id_is_the_file(qwen: Qwen) -> None:
    client = qwen.server.client()
    uploaded = client.files.create(file=("a.mp4", MP4), purpose="vision").id
    part = {"type": "video_url", "video_url": {"file_id": uploaded}}
    options = {"extra_body": {"mm_processor_kwargs": {"num_frames": 4}}}
    answers = [
        client.chat.completions.create(model="tiny", messages=turn(one), temperature=0, max_tokens=4, **options)
        for one in (part, file_part())
    ]
    first, second = ((a.choices[0].message.content, a.usage.prompt_tokens) for a in answers)
    assert first == second
    assert first[1] < ask_greedily(qwen.server, turn(file_part()), 4).usage.prompt_tokens
    gone = {"type": "video_url", "video_url": {"file_id": "file-none"}}
    with pytest.raises(openai.BadRequestError, match="No such File object"):
        client.chat.completions.create(model="tiny", messages=turn(gone))


@pytest.mark.parametrize(
    ("part", "param", "said"),
    [
        (file_part(num_frames=200), "num_frames", "num_frames 200 of a video that has 17"),
        (file_part(fps=1, num_frames=2), "num_frames", "fps or num_frames"),
        ({"type": "video_url", "video_url": {"url": "file:///etc/passwd"}}, "video_url", "must be a data: URL"),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, "video_url", "no known format"),
        ({"type": "video", "video": ["data:image/png;base64,AAAA"]}, "video[0]", "image is of no known format"),
        ({"type": "video", "video": []}, "video", "at least 1"),
        ({"type": "input_video", "video": "x"}, "type", "content parts accepted are"),
    ],
)
def test_what_cannot_be_taken_is_a_400_with_its_place(qwen: Qwen, part: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said.replace("[", r"\[")) as caught:
        ask_greedily(qwen.server, turn(part), TOKENS)
    assert caught.value.param == f"messages[0].content[0].{param}"
