"""mmproj files that are none, belong elsewhere, or lie: a sentence, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from opsin_plugins.blocks.checkpoint import targets
from opsin_plugins.blocks.model import build_model
from opsin_plugins.loading.gguf.container import read_container
from opsin_plugins.loading.gguf.mmproj import PROJECTORS
from opsin_plugins.loading.open_model import open_model
from opsin_plugins.loading.weight_matching import assign
from opsin_plugins.spec import SpecError
from support import tiny
from support.gguf_files import check_mutations, rewritten
from support.mmproj_files import Pair, write_mmproj, write_pair

MUTATIONS = 100
MAKERS: Mapping[str, Callable[..., Any]] = {
    "llava": tiny.llava,
    "qwen2_vl": tiny.qwen2_vl,
    "qwen2_5_vl": tiny.qwen2_5_vl,
    "idefics3": tiny.idefics3,
    "llava.pixtral": lambda: tiny.pixtral("llama"),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {name: write_pair(tmp_path_factory.mktemp("pair") / name, make()) for name, make in MAKERS.items()}


def refusal(model: Path, mmproj: Path) -> str:
    with pytest.raises(SpecError) as refused:
        planned(model, mmproj)
    return str(refused.value)


def planned(model: Path, mmproj: Path) -> None:
    """As far as a start goes before it reads weights."""
    opened = open_model(model, mmproj=mmproj)
    sketch = build_model(opened.spec, opened.registry, device="meta")
    places = {name: target.shape for name, target in targets(sketch).items()}
    assign(opened.files.tensors, opened.architecture.weights(opened.spec), places)


def test_nothing_but_a_tower_is_taken(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["llava"]
    assert "is no file" in refusal(pair.model, tmp_path / "none.gguf")
    assert "no GGUF file" in refusal(pair.model, Path(__file__))
    assert "its architecture is 'llama', and not 'clip'" in refusal(pair.model, pair.model)
    with pytest.raises(SpecError, match="give it as --mmproj"):
        open_model(pair.mmproj)


def test_a_directory_has_its_own_tower(pairs: dict[str, Pair], tmp_path: Path) -> None:
    directory = tiny.save(tiny.llava(), tmp_path / "model")
    said = refusal(directory, pairs["llava"].mmproj)
    assert "goes with a GGUF" in said
    assert str(directory) in said
    assert "is not a directory" in refusal(tmp_path / "absent", pairs["llava"].mmproj)


def test_another_projector_is_named_with_those_that_there_are(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["qwen2_vl"]
    for key, kind in (("clip.projector_type", "gemma3"), ("clip.projector_type", None)):
        said = refusal(pair.model, rewritten(pair.mmproj, tmp_path / "other.gguf", {key: kind}))
        assert f"the projector {kind or 'none'!r} is not read" in said
        assert all(known in said for known in PROJECTORS)


def test_the_projector_may_be_named_for_vision_alone(pairs: dict[str, Pair], tmp_path: Path) -> None:
    """As in files that have a tower for sounds as well."""
    pair = pairs["qwen2_vl"]
    fields = {"clip.projector_type": None, "clip.vision.projector_type": "qwen2vl_merger"}
    other = rewritten(pair.mmproj, tmp_path / "other.gguf", fields)
    planned(pair.model, other)
    assert open_model(pair.model, mmproj=other).spec == open_model(pair.model, mmproj=pair.mmproj).spec


def test_a_vocabulary_without_the_placeholder_is_refused(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["idefics3"]
    tokens = [f"t{i}" if i in (150, 151) else text for i, text in enumerate(vocabulary(pair.model))]
    said = refusal(rewritten(pair.model, tmp_path / "m.gguf", {"tokenizer.ggml.tokens": tokens}), pair.mmproj)
    assert "Idefics3, SmolVLM: its pictures need <image>, <fake_token_around_image>, which the vocabulary of" in said
    assert all(known in said for known in PROJECTORS)


def vocabulary(path: Path) -> tuple[str, ...]:
    return read_container(path).fields["tokenizer.ggml.tokens"]


def test_a_tower_of_another_width_is_refused(pairs: dict[str, Pair], tmp_path: Path) -> None:
    wider = tiny.qwen2_vl(hidden_size=96, num_attention_heads=6, num_key_value_heads=6)
    said = refusal(pairs["qwen2_vl"].model, write_mmproj(tmp_path / "wider.gguf", wider))
    assert "it gives 96 values a visual token" in said
    assert "takes 64" in said
    assert all(known in said for known in PROJECTORS)


def test_a_decoder_of_another_architecture_is_refused(pairs: dict[str, Pair]) -> None:
    said = refusal(pairs["llava"].model, pairs["qwen2_vl"].mmproj)
    assert "it belongs to a decoder of the architecture qwen2vl, and" in said
    assert said.count("is llama") == 1


def test_llava_next_is_told_apart(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["llava"]
    fields = {"clip.vision.image_grid_pinpoints": [336, 672, 672, 336]}
    assert "LLaVA-NeXT is not read" in refusal(pair.model, rewritten(pair.mmproj, tmp_path / "next.gguf", fields))


def test_features_of_several_layers_are_refused(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["llava"]
    fields = {"clip.vision.feature_layer": [1, 3]}
    assert "features of 2 layers together" in refusal(pair.model, rewritten(pair.mmproj, tmp_path / "two.gguf", fields))


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        ("llava", {"clip.vision.block_count": 9}, "block_count is 9, and there is no v.blk.8.ln1.weight"),
        ("llava", {"clip.vision.block_count": 0}, "block_count is 0"),
        ("llava", {"clip.vision.embedding_length": 64}, "embedding_length is 64"),
        ("llava", {"clip.vision.patch_size": 14}, "patch_size is 14"),
        ("llava", {"clip.vision.image_size": 336}, "image_size is 336 in patches of 7"),
        ("llava", {"clip.vision.image_mean": [0.5, 0.5]}, "three numbers"),
        ("llava", {"clip.vision.image_mean": None}, "three numbers"),
        ("llava", {"clip.vision.image_std": [0.5, 0.0, 0.5]}, "no number may be 0"),
        ("llava", {"clip.vision.image_std": [0.5, float("nan"), 0.5]}, "three numbers"),
        ("llava", {"clip.use_gelu": True, "clip.use_silu": True}, "both set"),
        ("llava", {"clip.vision.attention.head_count": 0}, "num_attention_heads must be at least 1"),
        ("qwen2_vl", {"clip.vision.spatial_merge_size": 2**20}, "spatial_merge_size is 1,048,576"),
        ("qwen2_5_vl", {"clip.vision.n_wa_pattern": None}, "no clip.vision.n_wa_pattern"),
        ("qwen2_5_vl", {"clip.vision.n_wa_pattern": 0}, "n_wa_pattern is 0"),
        ("idefics3", {"clip.vision.projector.scale_factor": 3}, "scale_factor is 3"),
    ],
)
def test_a_field_that_lies_is_a_sentence(
    pairs: dict[str, Pair], tmp_path: Path, family: str, fields: Mapping[str, Any], said: str
) -> None:
    pair = pairs[family]
    assert said in refusal(pair.model, rewritten(pair.mmproj, tmp_path / "other.gguf", fields))


@pytest.mark.parametrize(
    ("family", "tensors", "said"),
    [
        ("llava", {"mm.2.weight": None}, "there is no mm.2.weight"),
        ("llava", {"v.blk.1.attn_q.weight": None}, "vision.layers.1.attention.qkv.weight"),
        ("llava", {"v.class_embd": "v.something"}, "keys that nothing takes: v.something"),
        ("llava", {"v.class_embd": "token_embd.weight"}, "token_embd.weight is in both"),
        ("llava", {"v.class_embd": "model.language_model.norm.weight"}, "norm.weight is in both"),
        ("qwen2_vl", {"v.blk.1.attn_k.bias": None}, "attn.k.bias is missing"),
        ("qwen2_vl", {"v.patch_embd.weight.1": None}, "there is no v.patch_embd.weight.1"),
        ("idefics3", {"v.position_embd.weight": None}, "there is no v.position_embd.weight"),
    ],
)
def test_a_tensor_that_is_missing_or_nobodys_is_a_sentence(
    pairs: dict[str, Pair], tmp_path: Path, family: str, tensors: Mapping[str, str | None], said: str
) -> None:
    pair = pairs[family]
    assert said in refusal(pair.model, rewritten(pair.mmproj, tmp_path / "other.gguf", tensors=tensors))


@pytest.mark.parametrize("family", MAKERS)
def test_no_mutation_is_worse_than_a_sentence(pairs: dict[str, Pair], tmp_path: Path, family: str) -> None:
    """Bytes of the header changed, and the file cut anywhere."""
    pair, other = pairs[family], tmp_path / "other.gguf"
    planned(pair.model, pair.mmproj)  # (what is imported first does not count)

    def attempt(data: bytes) -> None:
        other.write_bytes(data)
        planned(pair.model, other)

    check_mutations(pair.mmproj, MUTATIONS, attempt)
