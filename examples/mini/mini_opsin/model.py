"""What is trained: transformers' own Qwen2-VL modules, which hold the parameters, and the heads beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from mini_opsin.labels import CLASSES, MAX_ORDINAL, PATCH
from mini_opsin.tokenizer import SPACE
from mini_opsin.words import COLOURS

MERGE, TEMPORAL = 2, 2
HEAD = 32  # features of an attention head, in the tower and in the decoder
MAX_SIDE = 16  # rows or columns of visual tokens that the position heads can name
NORM_EPS = 1e-6
# Both are small: width gets the lowest frequencies, and with theta 10 those still turn 0.27 to 0.12 rad a column, so
# that neighbouring columns differ. With theta 10,000 six columns looked alike.
ROPE_THETA, ROPE_SECTIONS = 10.0, (2, 7, 7)


@dataclass(frozen=True)
class Sizes:
    vision_depth: int = 4
    vision_dim: int = 160
    layers: int = 5
    dim: int = 192
    mlp: int = 512

    @property
    def vision_heads(self) -> int:
        return self.vision_dim // HEAD

    @property
    def heads(self) -> int:
        return self.dim // HEAD

    @property
    def kv_heads(self) -> int:
        return self.dim // (2 * HEAD)


def sizes_of(state: Mapping[str, Tensor]) -> Sizes:
    """Read from the weights themselves."""

    def count(prefix: str) -> int:
        return len({name.split(prefix)[1].split(".")[0] for name in state if prefix in name})

    return Sizes(
        count("visual.blocks."),
        state["model.visual.patch_embed.proj.weight"].shape[0],
        count("language_model.layers."),
        state["model.language_model.norm.weight"].shape[0],
        state["model.language_model.layers.0.mlp.up_proj.weight"].shape[0],
    )


def make_config(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Qwen2VLConfig:
    ids = tokenizer.get_vocab()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.dim,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": 1024,
        "rms_norm_eps": NORM_EPS,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": list(ROPE_SECTIONS)},
    }
    vision = {
        "depth": sizes.vision_depth,
        "embed_dim": sizes.vision_dim,
        "hidden_size": sizes.dim,
        "num_heads": sizes.vision_heads,
        "mlp_ratio": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


@torch.no_grad()
def initialise(model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Matrices at 1/sqrt(fan in), branches' last matrices smaller, and 'Circle' starting near ' circle'."""
    generator = torch.Generator().manual_seed(seed)
    last = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")
    for name, p in model.named_parameters():
        if p.dim() < 2:
            continue
        gain = 0.3 if name.endswith(last) else 0.8
        p.normal_(0, 0.1 if "embed_tokens" in name else gain * p[0].numel() ** -0.5, generator=generator)
    parameters = dict(model.named_parameters())
    # Visual embeddings must start at the text embeddings' scale: an oversized prefix drowns what layers write to it.
    parameters["model.visual.merger.mlp.2.weight"].mul_(0.2)
    embedding, ids = parameters["model.language_model.embed_tokens.weight"], tokenizer.get_vocab()
    for token, index in ids.items():
        lower = ids.get(SPACE + token.lower())
        if len(token) > 2 and token[0].isupper() and lower is not None:
            embedding[index] = 0.8 * embedding[lower] + 0.6 * embedding[index]


class Heads(nn.Module):
    """Heads of the auxiliary losses; no part of the exported model. noun: count, row, column, colour, class;
    place: beside, above, third of the width, third of the height."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        classes, colours, dim = len(CLASSES) + 1, len(COLOURS), sizes.dim
        self.patch_class = nn.Linear(sizes.vision_dim, classes)
        self.patch_colour = nn.Linear(sizes.vision_dim, colours)
        self.nothing = nn.Parameter(torch.randn(1, dim) * 0.1)
        self.log_scale = nn.Parameter(torch.zeros(2))
        self.ordinal = nn.Linear(dim, MAX_ORDINAL + 1)
        self.row = nn.Linear(dim, MAX_SIDE)
        self.column = nn.Linear(dim, MAX_SIDE)
        self.noun = nn.ModuleList([nn.Linear(dim, n) for n in (4, MAX_SIDE, MAX_SIDE, colours, classes)])
        self.place = nn.ModuleList([nn.Linear(dim, 3) for _ in range(4)])
