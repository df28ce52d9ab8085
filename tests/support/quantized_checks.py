"""Tiny checkpoints with packed linears, and the check that they are read as what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from opsin_plugins.blocks.model import Model
from support import oracle
from support.packers import PackedWeight

Pack = Callable[[str, Tensor], PackedWeight | None]
Make = Callable[[], PreTrainedModel]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


def tiny(hidden: int = 256, mlp: int = 384, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=320, hidden_size=hidden, intermediate_size=mlp, **(SIZES | changes))
    return LlamaForCausalLM(config).eval()


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}


def saved(model: LlamaForCausalLM, folder: Path, config: dict[str, Any], pack: Pack) -> None:
    """With all linears packed but the head; the model has then the weights that are meant."""
    model.save_pretrained(folder)
    tensors, header = load_file(folder / "model.safetensors"), {"format": "pt"}
    for name, module in linears(model).items():
        packed = pack(name, module.weight.detach())
        if packed is None:
            continue
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{key}": tensor.contiguous() for key, tensor in packed.tensors.items()}
        module.weight.data.copy_(packed.meant)
        header |= {} if packed.header is None else {f"{name}.weight": packed.header}
    save_file(tensors, folder / "model.safetensors", header)
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {"quantization_config": config}))


def check(model: LlamaForCausalLM, folder: Path, least: float) -> Model:
    """least: how much smaller than its floats the model must at least be."""
    ours = oracle.with_declared(folder)
    asked = oracle.prompt(ours, list(range(5, 25)), [])
    (mine,) = oracle.our_logits(ours, [asked])
    wanted = oracle.their_logits(model, ours, asked)
    assert (mine - wanted).abs().max() < 1e-3 * wanted.abs().max()
    stored = sum(
        part.nbytes for part in (*ours.model.decoder.layers.parameters(), *ours.model.decoder.layers.buffers())
    )
    floats = sum(part.nbytes for part in model.model.layers.parameters())
    assert stored * least < floats
    return ours.model
