"""Pixtral, and Mistral Small 3.1, which joins neighbours before the projector. Source of names and fields:
LlavaVisionModel and PixtralModel of llama.cpp's conversion package."""

from __future__ import annotations

from opsin_plugins.loading.gguf.decoder import halves
from opsin_plugins.loading.gguf.vision.tower_file import DOWN, PATCHES, UP, TowerFile, VisionHalf

TOWER, PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."
QUERIES, KEYS = "attn_q", "attn_k"
PARTS = {
    "ln1": "attention_norm",
    "ln2": "ffn_norm",
    QUERIES: "attention.q_proj",
    KEYS: "attention.k_proj",
    "attn_v": "attention.v_proj",
    "attn_out": "attention.o_proj",
    "ffn_gate": "feed_forward.gate_proj",
    UP: "feed_forward.up_proj",
    DOWN: "feed_forward.down_proj",
}
JOINS = "mm.patch_merger.weight"
OTHERS = {
    PATCHES: f"{TOWER}patch_conv.weight",
    "v.pre_ln.weight": f"{TOWER}ln_pre.weight",
    "mm.input_norm.weight": f"{PROJECTOR}norm.weight",
    JOINS: f"{PROJECTOR}patch_merger.merging_layer.weight",
    **{f"mm.{i}.{kind}": f"{PROJECTOR}linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")},
}
ROW_END = "v.token_embd.img_break"  # a row of the decoder's embedding, which llama.cpp keeps beside the tower


def read_pixtral(file: TowerFile) -> VisionHalf:
    """Queries and keys stand in the order in which llama.cpp turns them, as those of a Llama do."""
    side = file.own.integer("image_size")
    config = {
        "model_type": "mistral3" if JOINS in file.tensors else "llava",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": "mm.1.bias" in file.tensors,
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": file.width,
            "intermediate_size": file.matrix(f"v.blk.0.{UP}.weight")[0],
            "num_hidden_layers": file.layers,
            "num_attention_heads": file.heads,
            "image_size": side,
            "patch_size": file.patch,
            "hidden_act": file.activation("gelu", "quick_gelu"),
            "rope_theta": file.said.number("rope.freq_base", 10_000.0),
        },
    }
    if JOINS in file.tensors:
        config["spatial_merge_size"] = file.joined(JOINS, "spatial_merge_size", 2)
    order = {part: halves(file.tensor(f"v.blk.0.{part}.weight"), file.heads) for part in (QUERIES, KEYS)}
    tensors = file.named(f"{TOWER}transformer.layers.", PARTS, OTHERS, order)
    tensors.pop(ROW_END, None)
    return VisionHalf(
        config=config,
        preprocessor={
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": side},
            "patch_size": {"height": file.patch, "width": file.patch},
            **file.normalization(),
        },
        tensors=tensors,
    )
