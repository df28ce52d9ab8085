"""The published models themselves, on the meta device: every tensor has its place, and the sizes are the known ones."""

from __future__ import annotations

import pytest
import torch

from opsin_plugins.blocks.checkpoint import targets
from opsin_plugins.blocks.model import build_model
from opsin_plugins.blocks.stored_bytes import stored_bytes
from opsin_plugins.blocks.weight_policy import WeightPolicy, declared_forms
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.open_model import open_files
from opsin_plugins.loading.registry import PluginError, Registry
from opsin_plugins.loading.weight_matching import assign
from opsin_plugins.spec import U8, CodeForm, ImageBudget, ModelSpec, SpecError
from opsin_server.engine.scheduling.encoder_cache import EncoderCache, Reservation
from opsin_server.engine.startup.memory_plan import cross_kv_bytes_per_token, kv_bytes_per_token
from support import oracle, published

# family, parameters (on disk; a tied head is not), KiB of keys and values a token, visual tokens of 1024 x 1024
MODELS = {
    "Qwen2-VL-2B-Instruct": ("qwen2_vl", 2_208_985_600, 28, 1369),
    "Qwen2-VL-7B-Instruct": ("qwen2_vl", 8_291_375_616, 56, 1369),
    "Qwen2.5-VL-3B-Instruct": ("qwen2_5_vl", 3_754_622_976, 36, 1369),
    "Qwen2.5-VL-7B-Instruct": ("qwen2_5_vl", 8_292_166_656, 56, 1369),
    "Qwen3-VL-2B-Instruct": ("qwen3_vl", 2_127_532_032, 112, 1024),
    "Llama-3.2-11B-Vision-Instruct": ("mllama", 10_670_220_835, 128, 6404),
    "pixtral-12b": ("llava.pixtral", 12_682_739_712, 160, 4096),
    "Pixtral-12B-2409": ("mistral_params", 12_682_739_712, 160, 4096),
    "llava-1.5-7b-hf": ("llava", 7_063_427_072, 512, 576),
    "llava-v1.6-mistral-7b-hf": ("llava_next", 7_566_747_648, 128, 2928),
    "SmolVLM-256M-Instruct": ("idefics3", 256_484_928, 22.5, 1088),
    "Idefics3-8B-Llama3": ("idefics3", 8_462_086_384, 128, 2873),
    "Qwen-VL-Chat": ("qwen.visual", 9_656_935_168, 512, 256),
}
SQUARE = (1024, 1024)


def described(name: str):
    files = published.model_files(name)
    architecture = Registry().architecture(files)
    return files, architecture, architecture.spec(files)


@pytest.mark.parametrize("name", MODELS)
def test_every_published_tensor_has_its_place_and_nothing_is_left_over(name: str) -> None:
    files, architecture, spec = described(name)
    family, parameters, _, _ = MODELS[name]
    assert spec.family == family
    model = build_model(spec, Registry(), device="meta", dtype=torch.bfloat16)
    shapes = {key: target.shape for key, target in targets(model).items()}
    plan = assign(files.tensors, architecture.weights(spec), shapes)
    assert set(plan) == set(shapes)
    used = {source.key for sources in plan.values() for source in sources}
    unused = sum(torch.Size(info.shape).numel() for key, info in files.tensors.items() if key not in used)
    held = sum(p.numel() for p in model.parameters())
    assert held + unused == parameters == published.listed(name)["parameters"]


@pytest.mark.parametrize(("name", "gib"), [("Qwen2-VL-2B-Instruct-AWQ", 2.29), ("Qwen2-VL-7B-Instruct-AWQ", 6.65)])
def test_packed_decoders_stay_packed_and_towers_are_as_they_are(name: str, gib: float) -> None:
    files, architecture, spec = described(name)
    registry = Registry()
    shapes = {k: t.shape for k, t in targets(build_model(spec, registry, device="meta")).items()}
    declared = declared_forms(assign(files.tensors, architecture.weights(spec), shapes), files.tensors)
    linears = {path for path in linears_of(spec, registry) if path.startswith("decoder.layers.")}
    assert set(declared) == linears
    assert {form for segments in declared.values() for _, form in segments} == {CodeForm("int4", 128, offset=True)}
    model = build_model(spec, registry, device="meta", dtype=torch.bfloat16, policy=WeightPolicy(declared=declared))
    assert sum(stored_bytes(model).values()) / 2**30 == pytest.approx(gib, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_keys_and_values_and_visual_tokens_cost_what_is_known(name: str) -> None:
    _, architecture, spec = described(name)
    _, _, kib, tokens = MODELS[name]
    own = kv_bytes_per_token(spec.decoder, 2)
    assert own / 1024 == kib
    (item,) = architecture.preprocess([picture(spec)], spec, ImageBudget())
    assert item.tokens == tokens


def picture(spec: ModelSpec) -> U8:
    return oracle.picture(0, *SQUARE)


def test_an_image_of_four_tiles_costs_the_11b_model_200_mib() -> None:
    _, architecture, spec = described("Llama-3.2-11B-Vision-Instruct")
    (item,) = architecture.preprocess([picture(spec)], spec, ImageBudget())
    assert (item.grid, item.tokens) == ((4, 40, 40), 6404)
    assert item.tokens * cross_kv_bytes_per_token(spec.decoder, 2) / 2**20 == pytest.approx(200, abs=0.2)
    ledger: EncoderCache[None] = EncoderCache(1000, 16, pinned_during_decode=True)
    assert ledger.reserve(b"picture", item.tokens, "request") is Reservation.RESERVED
    assert ledger.used * 16 * cross_kv_bytes_per_token(spec.decoder, 2) / 2**20 == pytest.approx(200, abs=0.6)


@pytest.mark.parametrize("name", ["gemma-3-4b-it", "InternVL3-1B-hf"])
def test_a_family_that_is_not_there_is_refused_by_name(name: str) -> None:
    kind = published.model_files(name).config["model_type"]
    with pytest.raises(PluginError, match=f"no architecture plugin claims model_type '{kind}'"):
        described(name)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llava-1.5-7b-hf", {"vision_feature_layer": 99}, "feature layer 99"),
        ("llava-1.5-7b-hf", {"vision_feature_select_strategy": "some"}, "'some'"),
        (
            "llava-1.5-7b-hf",
            {"vision_config": {"image_size": 335, "patch_size": 14}},
            "335 is no grid of patches of 14",
        ),
        ("llava-1.5-7b-hf", {"vision_config": {"model_type": "qwen2_vl"}}, "is not supported: no LLaVA directory has"),
        ("llava-v1.6-mistral-7b-hf", {"vision_config": {"model_type": "swin"}}, "no vision encoder plugin claims"),
        ("llava-v1.6-mistral-7b-hf", {"image_grid_pinpoints": [[336, 500]]}, r"\[336, 500\] is no canvas"),
        ("Qwen-VL-Chat", {"rotary_pct": 0.5}, "rotary_pct 0.5"),
        ("Pixtral-12B-2409", {"yarn": {"factor": 16}}, "yarn {'factor': 16} is not supported"),
        ("Pixtral-12B-2409", {"llama_4_scaling": {"beta": 0.1}}, "llama_4_scaling"),
        ("Qwen2-VL-2B-Instruct", {"num_key_value_heads": 5}, "key-value heads 5"),
        ("Qwen2-VL-2B-Instruct", {"rope_scaling": {"type": "yarn", "factor": 4}}, "rope type 'yarn'"),
        ("Llama-3.2-11B-Vision-Instruct", {"vision_config": {"max_num_tiles": 0}}, "max_image_tiles|tile"),
        ("Idefics3-8B-Llama3", {"scale_factor": 3}, "no multiple of 3 patches"),
    ],
)
def test_what_cannot_work_is_refused_with_its_value(name: str, change: dict[str, object], said: str) -> None:
    from dataclasses import replace

    files = published.model_files(name)
    changed = replace(files, config={**files.config, **change})
    with pytest.raises(SpecError, match=said):
        Registry().architecture(changed).spec(changed)


def test_an_unknown_option_of_a_family_is_refused_with_those_there_are() -> None:
    for name, options, said in (
        ("Llama-3.2-11B-Vision-Instruct", {"rows": "all"}, "there are tokens_before_image"),
        ("Llama-3.2-11B-Vision-Instruct", {"tokens_before_image": "some"}, "one of none, all"),
        ("llava-1.5-7b-hf", {"a": "b"}, "there are none"),
    ):
        files = published.model_files(name, **options)
        with pytest.raises(SpecError, match=said):
            open_files(files, Registry())
