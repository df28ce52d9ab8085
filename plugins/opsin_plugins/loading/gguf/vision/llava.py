"""LLaVA-1.5: CLIP's tower up to the layer whose features are taken, and two linears. Source of names and fields:
convert_image_encoder_to_gguf among llama.cpp's tools/mtmd/legacy-models."""

from __future__ import annotations

from opsin_plugins.loading.gguf.vision.tower_file import DOWN, PATCHES, POSITIONS, UP, TowerFile, VisionHalf

TOWER = "model.vision_tower."
PARTS = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
}
OTHERS = {
    "v.class_embd": "embeddings.class_embedding",
    PATCHES: "embeddings.patch_embedding.weight",
    POSITIONS: "embeddings.position_embedding.weight",
    "v.pre_ln.weight": "pre_layrnorm.weight",  # (the published spelling)
    "v.pre_ln.bias": "pre_layrnorm.bias",
}
PROJECTOR = {
    f"mm.{number}.{kind}": f"model.multi_modal_projector.linear_{which}.{kind}"
    for number, which in ((0, 1), (2, 2))
    for kind in ("weight", "bias")
}


def read_llava(file: TowerFile) -> VisionHalf:
    """Layers past the feature that is taken are not in the file, unless it says which that is."""
    if "model.image_newline" in file.tensors or file.own.items("image_grid_pinpoints"):
        raise file.wrong(
            "LLaVA-NeXT is not read from GGUF (LLaVA-1.5 is; the model may be served from its safetensors)"
        )
    taken = file.own.items("feature_layer")
    if len(taken) > 1:
        raise file.wrong(f"features of {len(taken)} layers together are not served")
    first, second = (DOWN, UP) if file.swapped else (UP, DOWN)
    side = file.side(1)
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": file.width,
        "intermediate_size": file.mlp,
        "num_hidden_layers": file.layers,
        "num_attention_heads": file.heads,
        "image_size": side,
        "patch_size": file.patch,
        "layer_norm_eps": file.own.number("attention.layer_norm_epsilon"),
        "hidden_act": file.activation("gelu", "quick_gelu"),
    }
    return VisionHalf(
        config={
            "model_type": "llava",
            "vision_config": vision,
            "vision_feature_layer": taken[0] if taken else -1,
            "vision_feature_select_strategy": "default",
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": "mm.0.bias" in file.tensors,
        },
        preprocessor={
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            **file.normalization(),
        },
        tensors=file.named(
            f"{TOWER}encoder.layers.",
            {**PARTS, first: "mlp.fc1", second: "mlp.fc2"},
            {**{name: TOWER + theirs for name, theirs in OTHERS.items()}, **PROJECTOR},
        ),
    )
