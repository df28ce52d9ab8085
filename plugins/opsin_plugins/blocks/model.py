"""Builds one model from a spec: tower, projector, fusion, decoder. The same modules serve and train."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from opsin_plugins.blocks.decoder import Decoder, KVPool, Rows
from opsin_plugins.blocks.layers import LayerNorm, PlainMLP
from opsin_plugins.blocks.linear import Quantize
from opsin_plugins.blocks.tower import Grid
from opsin_plugins.fusions.base import Fusion, Visual
from opsin_plugins.registry import Registry
from opsin_plugins.spec import ModelSpec, ProjectorSpec


class Projector(nn.Module):
    """Features [N, in] -> visual tokens [N / merge², out]."""

    def __init__(self, spec: ProjectorSpec, quantize: Quantize = "none") -> None:
        super().__init__()
        self.joined = spec.in_width * spec.merge**2
        self.norm = LayerNorm(spec.in_width, spec.norm_eps) if spec.norm_eps is not None else None
        self.mlp = PlainMLP(self.joined, spec.hidden, spec.out_width, spec.activation, spec.bias, quantize)

    def forward(self, x: Tensor, slot: Tensor | None = None) -> Tensor:
        x = x if self.norm is None else self.norm(x)
        joined = x.view(-1, self.joined)
        slot = slot if slot is None else slot.view(len(joined), -1)[:, 0]
        return self.mlp(joined, slot)


class Model(nn.Module):
    def __init__(self, spec: ModelSpec, tower: nn.Module | None, fusion: Fusion | None, quantize: Quantize) -> None:
        super().__init__()
        self.spec = spec
        self.vision = tower
        self.projector = Projector(spec.projector, quantize) if spec.projector else None
        self.fusion = fusion
        self.decoder = Decoder(spec.decoder, quantize)

    def encode(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Pixels U8 [N, C·p·p] of all pictures -> their visual tokens [ΣM, H], one picture behind the other."""
        assert self.vision is not None
        assert self.projector is not None
        return self.projector(self.vision(pixels, grids))

    def forward(self, ids: Tensor, rows: Rows, pool: KVPool | None = None, visual: Visual | None = None) -> Tensor:
        """ids I64 [T] -> the last layer's states [T, H]; `logits` turns the rows that are wanted into logits."""
        x = self.decoder.embedding(ids)
        if visual is not None:
            assert self.fusion is not None
            x = self.fusion.on_embeddings(x, visual)
        layered = self.fusion if self.fusion is not None and self.fusion.in_layers else None
        return self.decoder(x, rows, pool, layered)

    def logits(self, states: Tensor) -> Tensor:
        return self.decoder.logits(states)


def build_model(
    spec: ModelSpec,
    registry: Registry,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: Quantize = "none",
) -> Model:
    """Unfilled weights on the device; `checkpoint.load_weights` fills them."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            tower = fusion = None
            if spec.vision is not None:
                assert spec.encoder is not None
                assert spec.fusion is not None
                assert spec.image is not None
                tower = _builder(registry.encoder(spec.encoder).builder)(spec.vision, spec.image.merge, quantize)
                fusion = _builder(registry.fusion(spec.fusion).builder)(spec)
            model = Model(spec, tower, fusion, quantize)
    finally:
        torch.set_default_dtype(previous)
    return model.eval()


def _builder(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
