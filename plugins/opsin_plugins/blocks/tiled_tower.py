"""A tower that sees all tiles of one picture together. Source: arXiv 2407.21783 §7 and the published Llama 3.2 Vision.

Every picture is padded to `max_tiles` tiles and every tile to a multiple of eight rows. Padding attends to no padding,
but real rows do attend to it, so that it is part of the function: it is computed, and left out of what is handed on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin_kernels.layout import Segments
from opsin_plugins.blocks.layers import LayerNorm, parameter
from opsin_plugins.blocks.linear import Quantize
from opsin_plugins.blocks.tower import Attended, Picture, Stem, TowerLayer
from opsin_plugins.spec import SpecError, TiledTowerSpec, TowerSpec

MULTIPLE = 8
PRE_NORM_EPS = 1e-5


class TileTable(nn.Module):
    """A learned row a tile and arrangement, through a gate."""

    def __init__(self, spec: TiledTowerSpec, values: int) -> None:
        super().__init__()
        self.weight, self.gate = parameter(len(spec.arrangements) + 1, spec.max_tiles * values), parameter(1)
        self.tiles = spec.max_tiles

    def forward(self, arrangement: Tensor) -> Tensor:
        """I64 [P] -> [P, tiles, values]."""
        return self.gate.tanh() * F.embedding(arrangement, self.weight).view(len(arrangement), self.tiles, -1)


class TiledTower(nn.Module):
    """Also the builder that the encoder names."""

    def __init__(self, spec: TowerSpec, merge: int = 1, quantize: Quantize = "none") -> None:
        super().__init__()
        if not isinstance(spec, TiledTowerSpec) or merge != 1:
            raise SpecError("a tiled tower needs a TiledTowerSpec and joins no neighbours")
        self.spec, self.per_tile = spec, spec.positions
        self.patch = Stem(spec)
        self.class_token = parameter(spec.width)
        self.positions = parameter(spec.positions, spec.width)
        self.tile_positions = TileTable(spec, spec.positions * spec.width)
        self.before_tiles, self.after_tiles = (TileTable(spec, spec.width) for _ in range(2))
        self.pre_norm, self.post_norm = (LayerNorm(spec.width, PRE_NORM_EPS) for _ in range(2))
        self.layers, self.global_layers = (
            nn.ModuleList(TowerLayer(spec, quantize, gated) for _ in range(count))
            for count, gated in ((spec.layers, False), (spec.global_layers, True))
        )

    def lengths(self, pictures: Sequence[Picture]) -> list[int]:
        """Rows that are handed on for each picture."""
        return [(self.spec.max_tiles if self.spec.keep_padding else p.grid[0]) * self.per_tile for p in pictures]

    def forward(self, pixels: Tensor, pictures: Sequence[Picture], slot: Tensor | None = None) -> Tensor:
        """pixels U8 [N, C·p·p] of the real tiles -> [rows, width · (1 + taps)]: the last state, then the taps' values
        interleaved, with the class token first in every tile."""
        spec, count = self.spec, len(pictures)
        kind = torch.tensor([spec.arrangements.index(p.tiles) + 1 for p in pictures], device=pixels.device)
        x = self._embedded(self.patch(pixels), [p.grid[0] for p in pictures], kind)
        x = F.pad(self.pre_norm(x), (0, 0, 0, -self.per_tile % MULTIPLE))  # [P, tiles, padded, width]
        order, where = self._rows(pictures, x.shape[2], slot)
        order = order.to(x.device)

        def run(x: Tensor, layers: nn.ModuleList) -> tuple[Tensor, list[Tensor]]:
            rows, taps = x.flatten(0, 2).index_select(0, order), []
            for i, layer in enumerate(layers):
                rows = layer(rows, where)
                if layers is self.layers and i in spec.taps:
                    taps.append(rows)
            return rows, taps

        local, taps = run(x, self.layers)
        spread = torch.zeros_like(x).flatten(0, 2).index_copy(0, order, self.post_norm(local)).view(x.shape)
        last, _ = run(spread + self.after_tiles(kind)[:, :, None], self.global_layers)
        out = torch.cat([last, torch.stack(taps, -1).flatten(-2)], -1) if taps else last
        kept = torch.cat([torch.arange(n) + i * (len(order) // count) for i, n in enumerate(self.lengths(pictures))])
        return out.index_select(0, kept.to(x.device))

    def _embedded(self, patches: Tensor, tiles: list[int], kind: Tensor) -> Tensor:
        """[N, width] -> [P, tiles, 1 + n, width]; the patches of padding tiles are zeros."""
        spec, n = self.spec, self.per_tile - 1
        padded = [
            F.pad(x.view(t, n, -1), (0, 0, 0, 0, 0, spec.max_tiles - t))
            for x, t in zip(patches.split([t * n for t in tiles]), tiles, strict=True)
        ]
        x = torch.stack(padded) + self.before_tiles(kind)[:, :, None]
        cls = self.class_token.to(x.dtype).expand(*x.shape[:2], 1, -1)
        x = torch.cat([cls, x], 2) + (1 - self.tile_positions.gate.tanh()) * self.positions
        return x + self.tile_positions(kind).view(x.shape)

    def _rows(self, pictures: Sequence[Picture], padded: int, slot: Tensor | None) -> tuple[Tensor, Attended]:
        """The order that brings each picture's real rows to the front, then the other tiles', then the odd ends."""
        spec, order, real = self.spec, [], []
        place = torch.arange(spec.max_tiles * padded).view(spec.max_tiles, padded)
        for i, picture in enumerate(pictures):
            whole = torch.cat([place[:, : self.per_tile].flatten(), place[:, self.per_tile :].flatten()])
            order.append(whole + i * place.numel())
            real.append(picture.grid[0] * self.per_tile)
        if slot is not None:  # a picture has one adapter
            firsts = torch.tensor([0, *(p.grid[0] * (self.per_tile - 1) for p in pictures[:-1])]).cumsum(0)
            slot = slot[firsts.to(slot.device)].repeat_interleave(place.numel())
        return torch.cat(order), Attended(Segments([place.numel()] * len(pictures), real), None, slot)
