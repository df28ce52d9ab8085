"""GGUF files as llama.cpp's own converter writes them, through the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, TokenType, quants
from torch import Tensor

from opsin_plugins.loading.gguf.decoder import NAMES, PARTS

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def write_llama(path: Path, model: Any, kinds: Mapping[str, Kind], extra: Mapping[str, Tensor] | None = None) -> Path:
    """A tiny Llama of transformers'. kinds: of tensors, by parts of their names."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    add_sentencepiece(writer, config.vocab_size)
    for name, tensor in model.state_dict().items():
        own = gguf_name(name)
        if own is None or (own == "output.weight" and config.tie_word_embeddings):
            continue
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        part = own.split(".")[-2]
        stored = turned(tensor, heads[part]) if part in heads else tensor
        kind = next((kind for word, kind in kinds.items() if word in own), Kind.F32)
        add_tensor(writer, own, stored, kind if stored.ndim > 1 else Kind.F32)
    for name, tensor in (extra or {}).items():
        add_tensor(writer, name, tensor, Kind.F32)
    finish(writer)
    return path


def turned(weight: Tensor, heads: int) -> Tensor:
    """As llama.cpp has the queries of a Llama: halves become neighbours."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def add_tensor(writer: GGUFWriter, name: str, tensor: Tensor, kind: Kind) -> None:
    numbers = tensor.detach().float().numpy()
    if kind == Kind.F32:
        writer.add_tensor(name, numbers)
        return
    writer.add_tensor(name, quants.quantize(numbers, kind), raw_dtype=kind)


def add_sentencepiece(writer: GGUFWriter, size: int) -> None:
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *(f"▁{i}" for i in range(size - 259))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces[:size])
    writer.add_token_scores([-float(i) for i in range(size)])
    writer.add_token_types((kinds + [TokenType.NORMAL] * size)[:size])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str | None:
    """Of a tensor that transformers has."""
    for own, theirs in NAMES.items():
        if name == theirs:
            return own
    parts = {theirs: own for own, theirs in PARTS.items()}
    head, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    return f"blk.{head}.{parts[module]}.{kind}" if module in parts else None


def random_blocks(kind: Kind, count: int, size: int, halves: list[int], seed: int = 0) -> np.ndarray[Any, Any]:
    """Blocks of any bytes but for their float16s, which are small numbers. halves: where these lie."""
    chance = np.random.default_rng(seed)
    blocks = chance.integers(0, 256, (count, size), dtype=np.uint8)
    for at in halves:
        blocks[:, at : at + 2] = (chance.standard_normal(count) / 8).astype(np.float16)[:, None].view(np.uint8)
    return blocks
