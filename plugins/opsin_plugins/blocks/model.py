"""Builds one model from a spec: tower, projector, fusion, decoder. The same modules serve and train."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from opsin_plugins.blocks.decoder import Decoder, KVPool, ModelInputs
from opsin_plugins.blocks.fusion import Fusion, Visual
from opsin_plugins.blocks.linear import Quantize
from opsin_plugins.blocks.tower import Picture
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import ModelSpec


class TowerModule(Protocol):
    """What an encoder's builder makes: an nn.Module with these."""

    def lengths(self, pictures: Sequence[Picture]) -> list[int]:
        """Features of each picture."""

    def __call__(self, pixels: Tensor, pictures: Sequence[Picture], slot: Tensor | None = None) -> Tensor:
        """pixels U8 [N, C·p·p] -> features [N', width]."""


class ProjectorModule(Protocol):
    """What a projector's builder makes: an nn.Module with these."""

    def counts(self, lengths: Sequence[int]) -> list[int]:
        """Visual tokens of pictures with so many features."""

    def __call__(self, x: Tensor, lengths: Sequence[int], slot: Tensor | None = None) -> Tensor:
        """Features [N', width] -> visual tokens [M, H]."""

    def arrange(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Visual tokens of one picture in the order of VisualItem.arrange."""


class Model(nn.Module):
    vision: TowerModule | None
    projector: ProjectorModule | None
    fusion: Fusion | None

    def __init__(
        self,
        spec: ModelSpec,
        tower: TowerModule | None,
        projector: ProjectorModule | None,
        fusion: Fusion | None,
        quantize: Quantize,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.vision, self.projector, self.fusion = tower, projector, fusion
        self.decoder = Decoder(spec.decoder, quantize)

    def encode(
        self,
        pixels: Tensor,
        pictures: Sequence[Picture],
        arrange: Sequence[Tensor | None] | None = None,
        slot: Tensor | None = None,
    ) -> list[Tensor]:
        """Pixels U8 [N, C·p·p] of all pictures -> the visual tokens of each [M, H · (1 + levels)].

        arrange: I64 [M] a picture, as of VisualItem. slot I64 [N]: each patch's adapter slot.
        """
        assert self.vision is not None
        assert self.projector is not None
        lengths = self.vision.lengths(pictures)
        features = self.vision(pixels, pictures, slot)
        if slot is not None:  # all features of a picture have its adapter
            firsts = torch.tensor([0, *(_patches(p) for p in pictures[:-1])]).cumsum(0).to(slot.device)
            slot = slot[firsts].repeat_interleave(torch.tensor(lengths, device=slot.device))
        counts = self.projector.counts(lengths)
        tokens = self.projector(features, lengths, slot).split(counts)
        if arrange is None:
            return list(tokens)
        return [
            x if order is None else self.projector.arrange(x, order) for x, order in zip(tokens, arrange, strict=True)
        ]

    def tokens_of(self, picture: Picture) -> int:
        """How many tokens the projector makes of a picture, before they are arranged."""
        assert self.vision is not None
        assert self.projector is not None
        (count,) = self.projector.counts(self.vision.lengths([picture]))
        return int(count)

    def forward(
        self, ids: Tensor, rows: ModelInputs, pool: KVPool | None = None, visual: Visual | None = None
    ) -> Tensor:
        """ids I64 [T] -> the last layer's states [T, H]; `logits` turns the rows that are wanted into logits."""
        x = self.decoder.embedding(ids)
        if visual is not None:
            assert self.fusion is not None
            x = self.fusion.on_embeddings(x, visual)
        return self.decoder(x, rows, pool, self.fusion, visual)

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
            tower = projector = fusion = None
            if spec.vision is not None:
                assert spec.encoder is not None
                assert spec.projector is not None
                assert spec.fusion is not None
                assert spec.image is not None
                tower = _builder(registry.encoder(spec.encoder).builder)(spec.vision, spec.image.merge, quantize)
                projector = _builder(spec.projector.builder)(spec.projector, quantize)
                fusion = _builder(registry.fusion(spec.fusion).builder)(spec, quantize)
            model = Model(spec, tower, projector, fusion, quantize)
    finally:
        torch.set_default_dtype(previous)
    return model.eval()


def _builder(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _patches(picture: Picture) -> int:
    frames, rows, columns = picture.grid
    return frames * rows * columns
