"""/v1/embeddings, asked by the real SDK: of dual encoders, and of the shipped model, with transformers beside it."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from openai.types import CreateEmbeddingResponse
from PIL import Image

from opsin_server.embedding_config import EmbeddingConfig
from opsin_server.engine.embedding_engine import EmbeddingEngine, StepLimits, Waiting
from opsin_server.errors import ConfigError
from opsin_server.ipc.messages import Arrays, Submit
from support import tiny_dual
from support.local_server import MODEL, LocalServer
from support.served import Served
from support.talk import MINI, MODEL_NAME, SAMPLES, data_url, text_part, user

TEXTS = ["a photo of a cat", "dog", "Two, DOGS!"]
FILES = ["red_circle.png", "cat.png", "square_and_star.png"]


def part(picture: Image.Image | bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(picture)}}


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(3)
    drawn = [Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((28, 28), (61, 45), (20, 12))]
    return [*drawn, Image.open(SAMPLES / FILES[0]).convert("RGB")]


PROCESSORS = {
    "clip": hf.CLIPImageProcessorPil,
    "siglip": hf.SiglipImageProcessorPil,
    "siglip2": hf.Siglip2ImageProcessorPil,
}


class Pair:
    def __init__(self, kind: str, folder: Path) -> None:
        self.theirs, self.kind = getattr(tiny_dual, kind)(), kind
        self.directory, self.is_clip = tiny_dual.save(self.theirs, folder / kind), kind == "clip"
        self.server = LocalServer(self.directory)

    def ids(self, text: str) -> list[int]:
        """As the checkpoint's own tokenizer has them, where the text holds no special token."""
        if self.is_clip:
            return tiny_dual.clip_tokenizer().encode(text).ids
        cleaned = text.lower().replace(",", "").replace("!", "") if self.kind == "siglip" else text.lower()
        ids = tiny_dual.siglip_tokenizer().encode(" ".join(cleaned.split()) if self.kind == "siglip" else cleaned).ids
        return ids + [0] * (12 - len(ids))

    def of_ids(self, ids: list[int]) -> np.ndarray:
        found = self.theirs.get_text_features(input_ids=torch.tensor([ids])).pooler_output
        return F.normalize(found, dim=-1)[0].numpy()

    def of_picture(self, picture: Image.Image) -> np.ndarray:
        prepared = PROCESSORS[self.kind].from_pretrained(self.directory)(images=[picture], return_tensors="pt")
        return F.normalize(self.theirs.get_image_features(**prepared).pooler_output, dim=-1)[0].numpy()

    def ask(self, **body: Any) -> httpx.Response:
        return self.server.post("/v1/embeddings", {"model": MODEL, **body})


@pytest.fixture(scope="module", params=["clip", "siglip", "siglip2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp("pair"))


def test_a_pair_gives_the_sdk_what_transformers_gives(pair: Pair) -> None:
    """Texts and pictures in one request, as floats and, which the SDK asks for by itself, as base64."""
    inputs: list[Any] = [*TEXTS, *map(part, pictures()), text_part("dog")]
    expected = [*(pair.of_ids(pair.ids(text)) for text in TEXTS), *map(pair.of_picture, pictures())]
    expected.append(expected[1])

    async def both(sdk: openai.AsyncOpenAI) -> list[CreateEmbeddingResponse]:
        plain = await sdk.embeddings.create(model=MODEL, input=inputs)
        floats = await sdk.embeddings.create(model=MODEL, input=inputs, encoding_format="float")
        return [plain, floats]

    for answer in pair.server.with_sdk(both):
        assert [one.index for one in answer.data] == list(range(len(inputs)))
        found = np.array([one.embedding for one in answer.data], np.float32)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    raw = pair.ask(input="dog", encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), "<f4"), expected[1], atol=1e-5, rtol=0)


def test_ids_messages_and_cut_texts(pair: Pair) -> None:
    ids, long = pair.ids("dog"), "cat dog of two " * 9 + "a"
    own = [i for i in ids if i or pair.is_clip]
    two = pair.ask(input=[own, own[:-1]]).json()
    np.testing.assert_allclose(two["data"][0]["embedding"], pair.of_ids(ids), atol=1e-5, rtol=0)
    assert two["usage"]["prompt_tokens"] == 2 * len(own) - 1
    said = pair.ask(messages=[{"role": "user", "content": "dog"}]).json()["data"][0]["embedding"]
    np.testing.assert_allclose(said, pair.of_ids(ids), atol=1e-5, rtol=0)
    seen = pair.ask(messages=[{"role": "user", "content": [part(pictures()[1])]}]).json()["data"]
    np.testing.assert_allclose(seen[0]["embedding"], pair.of_picture(pictures()[1]), atol=1e-5, rtol=0)
    context = 16 if pair.is_clip else 12
    for most, side in ((-1, "right"), (6, "right"), (6, "left")):
        answer = pair.ask(input=long, truncate_prompt_tokens=most, truncation_side=side).json()
        whole = tiny_dual.clip_tokenizer() if pair.is_clip else tiny_dual.siglip_tokenizer()
        bare = whole.encode(long, add_special_tokens=False).ids
        front, kept = ([0] if pair.is_clip else []), (context if most < 0 else most) - 1 - pair.is_clip
        cut = [*front, *(bare[:kept] if side == "right" else bare[-kept:]), 1]
        cut += [] if pair.is_clip else [0] * (12 - len(cut))
        np.testing.assert_allclose(answer["data"][0]["embedding"], pair.of_ids(cut), atol=1e-5, rtol=0)
        assert answer["usage"]["prompt_tokens"] == (context if most < 0 else most)


def test_a_special_token_that_is_typed_is_text(pair: Pair) -> None:
    """Otherwise a text could say by itself where it is pooled."""
    spelled = "<|ENDOFTEXT|> dog" if pair.is_clip else "</s> dog"
    (one,) = pair.ask(input=[spelled], truncate_prompt_tokens=-1).json()["data"]
    ended = pair.of_ids(pair.ids(spelled)[:16])
    assert np.abs(np.array(one["embedding"]) - ended).max() > 1e-3


REFUSED = [
    ({"input": ""}, "input", "it must not be an empty string"),
    ({"input": ["a", ""]}, "input[1]", "it must not be an empty string"),
    ({"input": []}, "input", "should have at least 1 item"),
    ({"input": [[]]}, "input[0]", "should have at least 1 item"),
    ({"input": ["a"] * 2049}, "input", "should have at most 2048 items"),
    ({"input": [[1]] * 2049}, "input", "should have at most 2048 items"),
    ({"input": [1, "a"]}, "input[1]", "a valid integer"),
    ({"input": ["a", 1]}, "input[1]", "must be a string or a content part"),
    ({"input": [-1]}, "input[0]", "greater than or equal to 0, not -1"),
    ({"input": [10**6]}, "input", "there is no token 1000000"),
    ({"input": {"a": 1}}, "input", "must be a string, a list of strings"),
    ({"input": [{"type": "input_video"}]}, "input[0].type", "the content parts accepted are"),
    ({"input": [{"type": "video", "video": "x"}]}, "input[0].video", "takes no videos"),
    ({"input": [{"type": "text", "text": ""}]}, "input[0]", "it must not be an empty string"),
    ({"input": ["a", {"type": "image_url", "image_url": "data:image/png;base64,AAAA"}]}, "input[1].image_url", "image"),
    ({"input": "cat " * 40}, "input", "shorten it, or have it cut with 'truncate_prompt_tokens'"),
    ({"input": "cat " * 10**6}, "input", "more than"),
    ({"input": "a", "truncate_prompt_tokens": 17}, "truncate_prompt_tokens", "this model takes"),
    ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "0 tokens of a text"),
    ({"input": "a", "truncate_prompt_tokens": 1}, "truncate_prompt_tokens", "stand around a text"),
    ({"input": "a", "dimensions": 8}, "dimensions", "it does not say that it was trained to be cut short"),
    ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
    ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "messages", "not both"),
    ({}, "input", "Missing required parameter: 'input'"),
    ({"messages": [{"role": "user", "content": [text_part("a"), text_part("b")]}]}, "messages", "has 2 parts"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages", "it must not be an empty string"),
    ({"input": "a", "normalize": False}, "normalize", "false is not supported here"),
    ({"input": "a", "embed_dtype": "float16"}, "embed_dtype", "is not supported here"),
    ({"input": "a", "chat_template": "x"}, "chat_template", "is not supported here"),
    ({"input": "a", "flavour": 1}, "flavour", "Unrecognized request argument"),
    ({"input": [{"type": "image_url", "image_url": {"url": "data:,", "max_pixels": 9}}]}, "input[0].image_url", "size"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "says"), REFUSED, ids=[f"{i}-{p}" for i, (_, p, _) in enumerate(REFUSED)])
def test_what_cannot_be_embedded_is_refused_by_name(pair: Pair, body: Any, param: str, says: str) -> None:
    answer = pair.ask(**body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_the_most_urgent_are_embedded_first(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[tuple[Submit, Arrays]] = []
    submit = EmbeddingEngine.submit
    monkeypatch.setattr(EmbeddingEngine, "submit", lambda *given: (came.append(given[1:]), submit(*given))[1])  # type: ignore[arg-type]
    for priority in (1, None, -2, 1):
        assert pair.ask(input="dog", priority=priority).status_code == 200
    assert [message.priority for message, _ in came] == [1, 0, -2, 1]
    engine = EmbeddingEngine(None, None, StepLimits(2**31, 0, 2), torch.device("cpu"))  # type: ignore[arg-type]
    engine.waiting = {message.request_id: Waiting(message, arrays) for message, arrays in came}
    assert [[came.index((one.message, one.arrays)) for one in engine._take()] for _ in range(2)] == [[2, 1], [0, 3]]
    assert pair.ask(input="dog", priority=2**31).json()["error"]["param"] == "priority"


def test_embeddings_are_cut_short_where_the_model_was_trained_for_it(pair: Pair) -> None:
    whole = np.array(pair.ask(input="dog").json()["data"][0]["embedding"])
    cut = LocalServer(pair.directory, embeddings=EmbeddingConfig(matryoshka=True))
    answer = cut.post("/v1/embeddings", {"model": MODEL, "input": "dog", "dimensions": 8}).json()
    np.testing.assert_allclose(answer["data"][0]["embedding"], whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6, rtol=0)
    tiny_dual.edit(pair.directory, "config.json", matryoshka_dimensions=[8, 4])
    listed = LocalServer(pair.directory)
    refused = listed.post("/v1/embeddings", {"model": MODEL, "input": "dog", "dimensions": 5})
    assert "this model's embeddings have 4, 8 or" in refused.json()["error"]["message"]
    assert len(listed.post("/v1/embeddings", {"model": MODEL, "input": "dog", "dimensions": 4}).json()["data"]) == 1


def test_weights_that_are_no_numbers_end_the_requests_that_meet_them(tmp_path: Path) -> None:
    model = tiny_dual.clip()
    with torch.no_grad():
        model.text_projection.weight[0, 0] = torch.nan
    server = LocalServer(tiny_dual.save(model, tmp_path / "model"))
    answer = server.post("/v1/embeddings", {"model": MODEL, "input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")
    assert "embedding for this request is no numbers" in answer.json()["error"]["message"]
    assert server.post("/v1/embeddings", {"model": MODEL, "input": [part(pictures()[0])]}).status_code == 200


def test_what_a_pair_lacks_is_refused_when_it_starts(pair: Pair, tmp_path: Path) -> None:
    from opsin_server.config import EngineConfig
    from opsin_server.engine.startup.load import load_engine

    for name, value in (("quantization", "int8"), ("kv_dtype", "fp8"), ("max_loras", 2), ("train_memory", 2**28)):
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} {value}: this model makes embeddings"):
            load_engine(EngineConfig(str(pair.directory), **{name: value}), lambda done, total: None)


def test_a_served_pair(tmp_path: Path) -> None:
    """The command itself: what it lists, counts and refuses, and Azure's address."""
    directory = tiny_dual.save(tiny_dual.clip(), tmp_path / "tiny-clip")
    with Served(str(directory)) as served:
        client = served.client()
        found = client.embeddings.create(model="tiny-clip", input=["dog", "a cat"])
        assert len(found.data[0].embedding) == 24
        (model,) = client.models.list().data
        assert model.opsin == {  # type: ignore[attr-defined]
            "dtype": "float32",
            "weights": {"float32": model.opsin["weights"]["float32"]},  # type: ignore[attr-defined]
            "tasks": ["embeddings"],
            "embeddings": {"dimensions": 24, "inputs": ["text", "image"], "normalized": True},
        }
        assert model.architecture == {  # type: ignore[attr-defined]
            "input_modalities": ["text", "image"],
            "output_modalities": ["embeddings"],
        }
        with pytest.raises(openai.BadRequestError, match=r"makes embeddings .* and answers no conversations"):
            client.chat.completions.create(model="tiny-clip", messages=[{"role": "user", "content": "Hi"}])
        with pytest.raises(openai.BadRequestError, match="it is not trained here"):
            client.fine_tuning.jobs.create(model="tiny-clip", training_file="file-x")
        with httpx.Client(base_url=served.url, trust_env=False) as http:
            azure = http.post("/openai/deployments/tiny-clip/embeddings?api-version=1", json={"input": "dog"})
            np.testing.assert_allclose(azure.json()["data"][0]["embedding"], found.data[0].embedding, atol=1e-6)
            assert http.get("/health/ready").status_code == 200
            assert 'opsin_step_seconds_total{engine="0",part="embed.texts"}' in http.get("/metrics").text
        served.close()


def test_the_shipped_model_embeds_what_transformers_pools(client: openai.OpenAI, oracle) -> None:
    """A conversation with a picture, as its template renders it; a text; and the picture alone."""
    conversation = [user((SAMPLES / FILES[2]).read_bytes(), "What is on the left?")]
    body = {"model": MODEL_NAME, "messages": conversation, "add_generation_prompt": True}
    found = client.post("/embeddings", body=body, cast_to=CreateEmbeddingResponse)
    inputs = oracle.inputs(conversation)
    with torch.no_grad():
        states = oracle.model(**inputs, output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(found.data[0].embedding, F.normalize(states[-1], dim=0), atol=1e-4, rtol=0)
    assert found.usage.prompt_tokens == inputs["input_ids"].shape[1]
    given: list[Any] = ["A red circle.", oracle.tokenizer("A red circle.").input_ids]
    text, same = (client.embeddings.create(model=MODEL_NAME, input=one) for one in given)
    np.testing.assert_allclose(text.data[0].embedding, same.data[0].embedding, atol=1e-5, rtol=0)
    ids = torch.tensor([oracle.tokenizer("A red circle.").input_ids])
    with torch.no_grad():
        states = oracle.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(text.data[0].embedding, F.normalize(states[-1], dim=0), atol=1e-4, rtol=0)
    parts = [part((SAMPLES / name).read_bytes()) for name in FILES]
    seen = client.embeddings.create(model=MODEL_NAME, input=parts)  # type: ignore[arg-type]
    vectors = np.array([one.embedding for one in seen.data])
    assert vectors.shape == (3, len(text.data[0].embedding))
    assert (vectors @ vectors.T)[np.triu_indices(3, 1)].max() < 0.999


def test_a_checkpoint_says_how_it_is_pooled(oracle, tmp_path: Path) -> None:
    """As sentence-transformers writes it; what is not done is refused when somebody asks, and chats go on."""
    directory = tmp_path / "model"
    shutil.copytree(MINI, directory)
    kind = "sentence_transformers.models."
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    modules = [{"type": f"{kind}Transformer", "path": ""}, {"type": f"{kind}Pooling", "path": "1_Pooling"}]
    (directory / "modules.json").write_text(json.dumps(modules))
    server = LocalServer(directory)
    found = server.post("/v1/embeddings", {"model": MODEL, "input": "A red circle."}).json()["data"][0]["embedding"]
    with torch.no_grad():
        ids = oracle.tokenizer("A red circle.", return_tensors="pt").input_ids
        states = oracle.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(found, states.mean(0), atol=1e-4, rtol=0)
    (directory / "modules.json").write_text(json.dumps([*modules, {"type": f"{kind}Dense", "path": "2_Dense"}]))
    server = LocalServer(directory)
    refused = server.post("/v1/embeddings", {"model": MODEL, "input": "A red circle."})
    assert refused.status_code == 400
    assert "a module of type 'Dense' is not supported" in refused.json()["error"]["message"]
    assert server.ask([user("Hello")], max_tokens=1)["usage"]["completion_tokens"] == 1


def test_the_shipped_model_answers_both(client: openai.OpenAI) -> None:
    (model, *_) = client.models.list().data
    assert model.opsin["tasks"] == ["chat", "embeddings"]  # type: ignore[attr-defined]
    with pytest.raises(openai.BadRequestError, match="shorten it, or have it cut"):
        client.embeddings.create(model=MODEL_NAME, input="red circle " * 2000)
    cut = client.embeddings.create(
        model=MODEL_NAME, input="red circle " * 2000, extra_body={"truncate_prompt_tokens": 50}
    )
    assert cut.usage.prompt_tokens == 50
