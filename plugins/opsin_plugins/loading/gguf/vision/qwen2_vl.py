"""Qwen2-VL and Qwen2.5-VL. Source of names and fields: Qwen2VLVisionModel of llama.cpp's conversion package, which cuts
queries, keys and values apart, and the kernel of the patches into those of its two frames."""

from __future__ import annotations

from typing import Any

from opsin_plugins.loading.gguf.packing import joined_rows, stacked
from opsin_plugins.loading.gguf.vision.tower_file import DOWN, PATCHES, POSITIONS, UP, TowerFile, VisionHalf
from opsin_plugins.spec import TensorInfo

TOWER = "model.visual."
BLOCKS = f"{TOWER}blocks."
THREE = ("attn.q", "attn.k", "attn.v")
PARTS = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn_q": THREE[0],
    "attn_k": THREE[1],
    "attn_v": THREE[2],
    "attn_qkv": "attn.qkv",
    "attn_out": "attn.proj",
}
FRAMES = (PATCHES, f"{PATCHES}.1")
OTHERS = {
    "v.post_ln.weight": f"{TOWER}merger.ln_q.weight",
    "v.post_ln.bias": f"{TOWER}merger.ln_q.bias",
    **{f"mm.{i}.{kind}": f"{TOWER}merger.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")},
}
# What both publishers' preprocessor_config.json say, where the file says nothing.
LEAST_PIXELS, MOST_PIXELS = 3136, 12_845_056
WINDOW = 112  # pixels a side
TOKENS_PER_SECOND = 2  # of a video: what every published Qwen2.5-VL has, and no file says


def read_qwen2_vl(file: TowerFile) -> VisionHalf:
    if file.mlp % file.width:
        raise file.wrong(f"an MLP of {file.mlp} in a tower of {file.width} is no multiple of it")
    first, second = (DOWN, UP) if file.swapped else (UP, DOWN)
    vision = {
        "model_type": "qwen2_vl",
        "embed_dim": file.width,
        "mlp_ratio": file.mlp // file.width,
        "hidden_size": file.matrix("mm.2.weight")[0],
        "hidden_act": file.activation("gelu", "quick_gelu"),
    }
    return _half(file, vision, {**PARTS, first: "mlp.fc1", second: "mlp.fc2"})


def read_qwen2_5_vl(file: TowerFile) -> VisionHalf:
    """Every `n_wa_pattern`th layer sees the whole picture, the others windows of it."""
    every = file.own.integer("n_wa_pattern")
    if every < 1:
        raise file.wrong(f"clip.vision.n_wa_pattern is {every}")
    first, second = (DOWN, UP) if file.swapped else (UP, DOWN)
    vision = {
        "model_type": "qwen2_5_vl",
        "hidden_size": file.width,
        "intermediate_size": file.mlp,
        "out_hidden_size": file.matrix("mm.2.weight")[0],
        "hidden_act": file.activation("gelu", "silu"),
        "window_size": file.own.integer("window_size", WINDOW),
        "fullatt_block_indexes": tuple(range(every - 1, file.layers, every)),
        "tokens_per_second": TOKENS_PER_SECOND,
    }
    gated = {"ffn_gate": "mlp.gate_proj", first: "mlp.up_proj", second: "mlp.down_proj"}
    return _half(file, vision, {**PARTS, **gated})


def _half(file: TowerFile, vision: dict[str, Any], parts: dict[str, str]) -> VisionHalf:
    merge = file.joined("mm.0.weight", "spatial_merge_size", 2)
    shared = {
        "depth": file.layers,
        "num_heads": file.heads,
        "patch_size": file.patch,
        "spatial_merge_size": merge,
        "temporal_patch_size": len(FRAMES),
    }
    return VisionHalf(
        config={"model_type": vision["model_type"], "vision_config": vision | shared},
        preprocessor={
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": file.own.integer("image_min_pixels", LEAST_PIXELS),
            "max_pixels": file.own.integer("image_max_pixels", MOST_PIXELS),
            "patch_size": file.patch,
            "merge_size": merge,
            "temporal_patch_size": len(FRAMES),
            **file.normalization(),
        },
        tensors=_whole(file, file.named(BLOCKS, parts, OTHERS)),
    )


def _whole(file: TowerFile, found: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """With what was cut apart together again, and without the table of positions that the first converter wrote for a
    tower that has none."""
    found.pop(POSITIONS, None)
    kernels = [file.tensor(name).shape for name in FRAMES]
    if kernels[0] != kernels[1]:
        raise file.wrong(f"{' and '.join(FRAMES)} have the shapes {list(map(list, kernels))}")
    found[f"{TOWER}patch_embed.proj.weight"] = stacked([found.pop(name) for name in FRAMES], 2)
    for layer in range(file.layers):
        for kind in ("weight", "bias"):
            names = [f"{BLOCKS}{layer}.{part}.{kind}" for part in THREE]
            if any(name in found for name in names):
                found[f"{BLOCKS}{layer}.attn.qkv.{kind}"] = joined_rows([_part(file, found, name) for name in names])
    return found


def _part(file: TowerFile, found: dict[str, TensorInfo], name: str) -> TensorInfo:
    if name not in found:
        raise file.wrong(f"queries, keys and values are not all there: {name} is missing")
    return found.pop(name)
