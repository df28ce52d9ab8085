"""Builds a dual encoder from its spec: texts and pictures to embeddings in one space."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin_plugins.blocks.attention_pool import AttentionPool
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.model import TowerModule, allocated, builder_of
from opsin_plugins.blocks.text_tower import TextTower
from opsin_plugins.blocks.tower import Picture
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import DualEncoderSpec


class DualEncoderModule(Protocol):
    """What a dual encoder's builder makes: an nn.Module with these."""

    def embed_texts(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """ids I64 [T] of texts with these lengths -> F32 [S, dimensions] of length 1."""

    def embed_pictures(self, pixels: Tensor, pictures: Sequence[Picture]) -> Tensor:
        """pixels U8 [N, C·p·p] of all pictures -> F32 [P, dimensions] of length 1."""


class DualEncoderModel(nn.Module):
    """Also the builder that the built-in families name. tower: keeps its class token, if pictures are pooled by it."""

    vision: TowerModule

    def __init__(self, spec: DualEncoderSpec, tower: TowerModule) -> None:
        super().__init__()
        self.spec, self.vision = spec, tower
        self.pool = AttentionPool(spec.vision) if spec.pool == "attention" else None
        self.visual_projection = Linear(spec.vision.width, [spec.dimensions]) if spec.projected else None
        self.text = TextTower(spec.text)
        self.text_projection = Linear(spec.text.width, [spec.text.out], spec.text.out_bias)

    def embed_texts(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        return F.normalize(self.text_projection(self.text(ids, lengths)).float(), dim=-1)

    def embed_pictures(self, pixels: Tensor, pictures: Sequence[Picture]) -> Tensor:
        lengths = self.vision.lengths(pictures)
        features = self.vision(pixels, pictures)
        if self.pool is not None:
            pooled = self.pool(features, lengths)
        else:
            pooled = features.index_select(0, torch.tensor([0, *accumulate(lengths)][:-1], device=features.device))
        projected = pooled if self.visual_projection is None else self.visual_projection(pooled)
        return F.normalize(projected.float(), dim=-1)


def build_dual_encoder(
    spec: DualEncoderSpec,
    builder: str,
    registry: Registry,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    policy: WeightPolicy = WeightPolicy(),  # noqa: B008
) -> nn.Module:
    """Unfilled weights on the device, as `build_model` makes them. builder: `DualEncoder.builder`."""
    encoder = registry.encoder(spec.encoder)

    def declared() -> nn.Module:
        tower = builder_of(encoder.builder)(spec.vision, spec.image.merge)
        module: nn.Module = builder_of(builder)(spec, tower)
        return module

    return allocated(declared, device, dtype, policy)
