"""Published names of linears to the model's own, without torch and without a built model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from opsin_plugins.loading.linears import linears_of, shapes_pictures
from opsin_plugins.loading.lora_targets import LoraTarget, LoraTargets
from opsin_plugins.loading.open_model import open_files
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import SpecError
from support import published

NAMES = (
    "Qwen2-VL-7B-Instruct", "Qwen2.5-VL-3B-Instruct", "Qwen3-VL-2B-Instruct", "llava-1.5-7b-hf", "pixtral-12b",
    "llava-v1.6-mistral-7b-hf", "Llama-3.2-11B-Vision-Instruct", "Pixtral-12B-2409", "Qwen-VL-Chat",
    "SmolVLM-256M-Instruct", "Idefics3-8B-Llama3",
)  # fmt: skip


def targets(name: str) -> LoraTargets:
    opened = open_files(published.model_files(name), Registry())
    linears = linears_of(opened.spec, opened.registry)
    rules = opened.architecture.weights(opened.spec)
    return LoraTargets(rules, linears, opened.architecture.lora_groups(opened.spec))


@pytest.mark.parametrize("name", NAMES)
def test_every_published_linear_of_a_group_is_found_in_its_own_shape(name: str) -> None:
    """By the shapes that the checkpoint's headers have; together they cover every segment of all but the head."""
    found = targets(name)
    linears = found._linears
    covered = set()
    for key, info in published.tensors(name).items():
        linear = key.removesuffix(".weight")
        if key.endswith(".weight") and found.group(linear) is not None:
            mine = found.find(linear)
            assert info.shape == (max(t.rows[1] for t in mine) - min(t.rows[0] for t in mine), mine[0].inputs), key
            covered |= {(target.linear, target.segment) for target in mine}
    missing = {(n, i) for n, shape in linears.items() for i in range(len(shape.segments))} - covered
    assert {n for n, _ in missing} <= {"decoder.head", "projector.q", "projector.k", "projector.v", "projector.proj"}


def test_a_fused_linear_has_a_segment_for_each_published_one() -> None:
    found = targets("Qwen2-VL-7B-Instruct")
    layer = "model.layers.3.self_attn."
    assert found.find(layer + "v_proj") == [LoraTarget("decoder.layers.3.attention.qkv", 2, 3584, (0, 512), None)]
    assert [t.segment for t in found.find("visual.blocks.0.attn.qkv")] == [0, 1, 2], "and what is published fused, all"
    assert [t.rows for t in found.find("visual.blocks.0.attn.qkv")] == [(0, 1280), (1280, 2560), (2560, 3840)]
    assert found.find("lm_head") == [LoraTarget("decoder.head", 0, 3584, (0, 152064), None)]
    assert (found.group(layer + "v_proj"), found.group("lm_head")) == ("language.attention", None)


def test_a_tied_head_is_a_linear_too() -> None:
    assert targets("Qwen2-VL-2B-Instruct").find("lm_head")[0].linear == "decoder.head"


@pytest.mark.parametrize(
    ("linear", "why"),
    [
        ("visual.patch_embed.proj", "the patch embedding, a convolution"),
        ("model.embed_tokens", "the token embedding"),
        ("model.layers.0.input_layernorm", "no linear"),
        ("model.layers.99.mlp.up_proj", "no linear"),
        ("model.layers.0.mlp.w1", "no such weight"),
    ],
)
def test_what_cannot_be_adapted_is_named_with_the_reason(linear: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        targets("Qwen2-VL-7B-Instruct").find(linear)


def test_reordered_rows_come_with_their_order() -> None:
    found = targets("Pixtral-12B-2409").find("layers.0.attention.wq")
    assert found[0].reorder is not None


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("vision.layers.0.mlp.up", True), ("projector.mlp.up", True), ("decoder.layers.0.mlp.down", False),
        ("decoder.head", False), ("fusion.cross.3.attention.kv", True), ("fusion.cross.3.attention.q", False),
        ("fusion.cross.3.mlp.gate_up", False), ("fusion.mix", True),
    ],
)  # fmt: skip
def test_what_is_kept_of_a_picture_depends_on(name: str, shapes: bool) -> None:
    assert shapes_pictures(name) is shapes


def test_nothing_of_it_needs_torch() -> None:
    code = (
        "import sys, opsin_plugins.loading.lora_targets, opsin_plugins.loading.linears, "
        "opsin_plugins.loading.weight_matching; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_all_linears_of_the_groups(name: str) -> None:
    """Every part that the family names, each linear once, and by a name that is found again."""
    found = targets(name)
    modules = found.modules(published.tensors(name))
    assert {group.partition(".")[0] for group in modules.values()} == {g.partition(".")[0] for g in found._groups}
    for module, group in modules.items():
        assert found.group(module) == group
        assert found.find(module)
