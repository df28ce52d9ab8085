"""Composed models against transformers: each half as it was alone, and the whole as transformers runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.weight_files import INDEX
from opsin_plugins.spec import Expanded, ImageBudget
from opsin_server.compose import tensors as parts
from opsin_server.compose.command import Request, compose
from opsin_server.text.conversation import ImagePart, Message, TextPart
from opsin_server.text.encode_prompt import PromptEncoder
from support import halves, oracle
from support.halves import HalfModel
from support.inputs import whole

PICTURE = oracle.picture(3, 40, 33)
ASKED = [Message("user", (TextPart("what "), ImagePart("", ImageBudget(), ""), TextPart("is it?")))]
SAID = [Message("user", (TextPart("hello"), TextPart(" there")))]


def composed(encoder: HalfModel, language: HalfModel, out: Path, **choices: object) -> tuple[oracle.Ours, str]:
    report = compose(Request(encoder.directory, language.directory, out, **choices))  # type: ignore[arg-type]
    return oracle.load(out), report


def prompted(out: Path, ours: oracle.Ours, messages: list[Message]) -> oracle.Prompt:
    images = [PICTURE] * sum(isinstance(part, ImagePart) for message in messages for part in message.parts)
    made = PromptEncoder(read_model_files(out), ours.architecture, ours.spec).encode(messages, images)
    return oracle.Prompt(Expanded(made.ids, made.spans), made.items, made.positions, made.delta, ours.spec.decoder.rope)


def stored(out: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in out.glob("*.safetensors") for key, tensor in load_file(file).items()}


PAIRS = [
    ("clip", "llama", {"tie_word_embeddings": True}, {}),
    ("clip_vision_model", "mistral", {"vocab_size": 151}, {"select": "full", "layer": 2}),
    ("siglip", "qwen2", {"tie_word_embeddings": True, "vocab_size": 151}, {}),
    ("clip", "qwen3", {"head_dim": 24}, {}),
    ("siglip_vision_model", "llama", {"vocabulary": "llava"}, {"layer": -1, "seed": 5}),
]


@pytest.mark.parametrize(("vision", "text", "changes", "choices"), PAIRS)
@torch.no_grad()
def test_the_whole_is_its_halves_and_transformers_agrees(vision, text, changes, choices, tmp_path) -> None:
    encoder = halves.encoder(vision, tmp_path / "encoder")
    language = halves.language(text, tmp_path / "language", **changes)
    ours, _ = composed(encoder, language, tmp_path / "out", **choices)
    theirs, loading = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    assert theirs.config.tie_word_embeddings is bool(changes.get("tie_word_embeddings"))

    shown = prompted(tmp_path / "out", ours, ASKED)
    _same_features(encoder, ours, shown, choices)
    got = oracle.our_logits(ours, [shown])[0]
    torch.testing.assert_close(got, oracle.their_logits(theirs, ours, shown), atol=1e-4, rtol=0)

    said = prompted(tmp_path / "out", ours, SAID)
    alone, known = language.model(said.ids[None]).logits[0], language.model.config.vocab_size
    torch.testing.assert_close(oracle.our_logits(ours, [said])[0][:, :known], alone, atol=1e-4, rtol=0)


def _same_features(encoder: HalfModel, ours: oracle.Ours, shown: oracle.Prompt, choices: dict) -> None:
    tower = getattr(encoder.model, "vision_model", encoder.model)
    pixels = whole(shown.items[0], ours.spec)
    states = tower(pixels, output_hidden_states=True).hidden_states[choices.get("layer", -2)][0]
    expected = states[1:] if ours.spec.vision.class_token and choices.get("select") != "full" else states
    got = ours.model.vision(torch.from_numpy(shown.items[0].pixels), shown.items)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> HalfModel:
    return halves.encoder("clip_vision_model", tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> HalfModel:
    return halves.language("llama", tmp_path_factory.mktemp("llama"))


def test_published_names_in_bounded_shards(clip, llama, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "SHARD_BYTES", 50_000)
    _, report = composed(clip, llama, tmp_path / "out")
    weight_map = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert {path.name for path in files} == set(weight_map.values())
    assert len(files) > 5
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    assert max(sum(t.nbytes for t in load_file(f).values()) for f in files) <= 50_000
    for name in (
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias",
        "multi_modal_projector.linear_2.weight",
    ):
        assert name in weight_map
    assert "16 visual tokens" in report
    assert report.endswith(f"opsin serve {tmp_path / 'out'}")
    assert f"{sum(p.numel() for p in llama.model.parameters()):,} parameters (llama)" in report


def test_a_seed_draws_one_projector_whatever_the_shards(clip, llama, tmp_path, monkeypatch) -> None:
    def projector(name: str, seed: int) -> torch.Tensor:
        composed(clip, llama, tmp_path / name, seed=seed)
        return stored(tmp_path / name)["multi_modal_projector.linear_2.weight"]

    first = projector("a", 7)
    monkeypatch.setattr(parts, "SHARD_BYTES", 1)
    assert torch.equal(first, projector("b", 7))
    assert not torch.equal(first, projector("c", 8))
    assert first.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.05)


def test_a_new_placeholder_grows_an_embedding_by_its_mean(clip, tmp_path) -> None:
    language = halves.language("llama", tmp_path / "language", vocab_size=151)
    _, report = composed(clip, language, tmp_path / "out")
    state = stored(tmp_path / "out")
    for mine, theirs in (("model.embed_tokens", "model.embed_tokens"), ("lm_head", "lm_head")):
        rows, before = state[f"language_model.{mine}.weight"], language.model.get_parameter(f"{theirs}.weight")
        assert torch.equal(rows[:151], before)
        torch.testing.assert_close(rows[151], before.mean(0))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["image_token_index"], config["text_config"]["vocab_size"]) == (151, 152)
    assert "token 151, added, the embedding grown from 151 to 152 rows" in report


def test_a_known_placeholder_is_used_and_room_for_a_new_one_too(clip, llama, tmp_path) -> None:
    known = halves.language("llama", tmp_path / "known", vocabulary="llava")
    for language, line in ((known, "token 150, known before"), (llama, "token 151, added")):
        ours, report = composed(clip, language, tmp_path / f"of-{language.directory.name}")
        assert f"{line}\n" in report
        assert ours.spec.decoder.vocab == 160


def test_what_a_configuration_leaves_out_stays_what_it_was(clip, tmp_path) -> None:
    """A head that is not there is the embedding, and a Qwen2 stops at no id."""
    language = halves.language("qwen2", tmp_path / "language", tie_word_embeddings=True)
    config = language.directory / "config.json"
    left = ("tie_word_embeddings", "eos_token_id")
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k not in left}))
    (language.directory / "generation_config.json").unlink()
    ours, _ = composed(clip, language, tmp_path / "out")
    alone = oracle.load(language.directory)
    assert ours.spec.decoder == alone.spec.decoder
    assert ours.spec.decoder.tied
    assert ours.spec.eos == alone.spec.eos == ()


def test_types_follow_the_language_model_unless_told(clip, tmp_path) -> None:
    language = halves.language("qwen2", tmp_path / "language", dtype=torch.bfloat16)
    for name, choices, dtype in (("kept", {}, "BF16"), ("told", {"dtype": "float16"}, "F16")):
        composed(clip, language, tmp_path / name, **choices)
        files = read_model_files(tmp_path / name)
        assert {info.dtype for info in files.tensors.values()} == {dtype}
        assert files.config["torch_dtype"] == {"BF16": "bfloat16", "F16": "float16"}[dtype]
