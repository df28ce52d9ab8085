"""The real prompt code on the shipped model, behind the real routes: only the engine is a fake."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine, Script
from running_server import RunningServer

import opsin_server
from opsin_plugins.families.architectures.qwen2_vl import Qwen2VL
from opsin_plugins.loading.files import read_model_files
from opsin_server.media_limits import MediaLimits
from opsin_server.text.encode_prompt import PromptEncoder

MODELS = Path(opsin_server.__file__).parent / "models"


@pytest.fixture(scope="module")
def shipped() -> Iterator[RunningServer]:
    files = read_model_files(MODELS / "opsin-mini")
    spec = Qwen2VL().spec(files)
    encoder = PromptEncoder(files, Qwen2VL(), spec)
    tokens = encoder.tokenizer.encode("a red circle.")
    server = RunningServer(FakeEngine(Script(tokens)), encoder=encoder)
    yield server
    server.close()


def sample(name: str) -> dict[str, Any]:
    data = base64.b64encode((MODELS / "samples" / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def test_pictures_between_texts(shipped: RunningServer) -> None:
    parts = [
        {"type": "text", "text": "one"},
        sample("red_circle.png"),
        {"type": "text", "text": "two"},
        sample("cat.png"),
        {"type": "text", "text": "What is it?"},
    ]
    messages: list[Any] = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    answer = shipped.client().chat.completions.create(model="opsin-test", messages=messages, logprobs=True)
    assert answer.choices[0].message.content == "a red circle."
    assert "".join(p.token for p in answer.choices[0].logprobs.content) == "a red circle."
    message, arrays = shipped.engine.streams[-1].submit, shipped.engine.arrays[-1]
    assert len(message.items) == len(message.spans) == len(arrays.pixels) == 2
    assert answer.usage.prompt_tokens == len(arrays.ids) == arrays.positions.shape[1]
    assert answer.usage.prompt_tokens_details.image_tokens == sum(item.tokens for item in message.items)
    assert message.axes == len(arrays.positions) == 3
    assert message.eos
    assert len({item.digest for item in message.items}) == 2
    assert [frame.shape for frame in arrays.pixels] == [item.shape for item in message.items]


def test_detail_low_makes_a_large_picture_cheaper(shipped: RunningServer) -> None:
    def image_tokens(detail: str) -> int:
        part = sample("cat.png")
        part["image_url"]["detail"] = detail
        answer = shipped.client().chat.completions.create(
            model="opsin-test", messages=[{"role": "user", "content": [part, {"type": "text", "text": "x"}]}]
        )
        return answer.usage.prompt_tokens_details.image_tokens

    assert 0 < image_tokens("low") <= image_tokens("high") == image_tokens("auto")


def test_a_special_token_in_a_text_is_text(shipped: RunningServer) -> None:
    def ids(text: str) -> list[int]:
        shipped.client().chat.completions.create(model="opsin-test", messages=[{"role": "user", "content": text}])
        return list(shipped.engine.arrays[-1].ids)

    for special in ("<|image_pad|>", "<|im_end|>", "<|vision_start|>"):
        known = shipped.services.encoder.tokenizer.marker_ids
        assert [i for i in ids(f"a {special} b") if i in known] == [i for i in ids("a b") if i in known]
        assert shipped.engine.streams[-1].submit.items == ()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.png", "http://169.254.169.254/", "file:///etc/passwd", "x"])
def test_an_image_that_may_not_be_fetched(shipped: RunningServer, url: str) -> None:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError) as caught:
        shipped.client().chat.completions.create(model="opsin-test", messages=[{"role": "user", "content": parts}])
    assert caught.value.param == "messages[0].content[0].image_url"


def test_limits_of_the_configuration_hold(shipped: RunningServer) -> None:
    server = RunningServer(FakeEngine(Script(b"")), encoder=shipped.services.encoder, media=MediaLimits(max_images=1))
    try:
        parts: list[Any] = [sample("cat.png"), sample("cat.png")]
        with pytest.raises(openai.BadRequestError, match="--max-images"):
            server.client().chat.completions.create(model="opsin-test", messages=[{"role": "user", "content": parts}])
    finally:
        server.close()
