"""Idefics3 and SmolVLM: SigLIP's tower, and one linear over joined neighbours. Source of names and fields: SmolVLMModel
of llama.cpp's conversion package."""

from __future__ import annotations

from opsin_plugins.loading.gguf.vision.llava import PARTS
from opsin_plugins.loading.gguf.vision.tower_file import DOWN, PATCHES, POSITIONS, UP, TowerFile, VisionHalf

TOWER = "model.vision_model."
LINEAR = "mm.model.fc.weight"
OTHERS = {
    PATCHES: f"{TOWER}embeddings.patch_embedding.weight",
    "v.patch_embd.bias": f"{TOWER}embeddings.patch_embedding.bias",
    POSITIONS: f"{TOWER}embeddings.position_embedding.weight",
    "v.post_ln.weight": f"{TOWER}post_layernorm.weight",
    "v.post_ln.bias": f"{TOWER}post_layernorm.bias",
    LINEAR: "model.connector.modality_projection.proj.weight",
}
TILES = 4  # along the longest edge: of every published model, and of files that are older than the field


def read_idefics3(file: TowerFile) -> VisionHalf:
    tile = file.side(0)
    first, second = (DOWN, UP) if file.swapped else (UP, DOWN)
    return VisionHalf(
        config={
            "model_type": "idefics3",
            "scale_factor": file.joined(LINEAR, "projector.scale_factor", 2),
            "vision_config": {
                "hidden_size": file.width,
                "intermediate_size": file.mlp,
                "num_hidden_layers": file.layers,
                "num_attention_heads": file.heads,
                "image_size": tile,
                "patch_size": file.patch,
                "layer_norm_eps": file.own.number("attention.layer_norm_epsilon"),
                "hidden_act": file.activation("gelu_pytorch_tanh", "quick_gelu"),
            },
        },
        preprocessor={
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": file.own.integer("preproc_image_size", TILES * tile)},
            "max_image_size": {"longest_edge": tile},
            **file.normalization(),
        },
        tensors=file.named(f"{TOWER}encoder.layers.", {**PARTS, first: "mlp.fc1", second: "mlp.fc2"}, OTHERS),
    )
