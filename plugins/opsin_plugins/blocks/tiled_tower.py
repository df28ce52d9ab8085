"""A tower that sees all tiles of one picture together. Source: arXiv 2407.21783 §7 and the published Llama 3.2 Vision.

Every picture is padded to `max_tiles` tiles and every tile to a multiple of eight rows. Padding attends to no padding,
but real rows do attend to it, so that it is part of the function: it is computed, and left out of what is handed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin_kernels.layout import Segments
from opsin_plugins.blocks.layers import LayerNorm, parameter
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.stages import Stage
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


@dataclass(frozen=True)
class _Packing:
    """How the rows of some pictures lie. tiles: real ones of each; kind I64 [P]: how they are arranged; order I64
    [P·tiles·padded]: the row of each place; kept I64: the places that are handed on."""

    tiles: list[int]
    kind: Tensor
    order: Tensor
    attended: Attended
    kept: Tensor


class TiledTower(nn.Module):
    """Also the builder that the encoder names."""

    def __init__(self, spec: TowerSpec, merge: int = 1) -> None:
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
            nn.ModuleList(TowerLayer(spec, gated) for _ in range(count))
            for count, gated in ((spec.layers, False), (spec.global_layers, True))
        )

    def lengths(self, pictures: Sequence[Picture]) -> list[int]:
        """Rows that are handed on for each picture."""
        return [(self.spec.max_tiles if self.spec.keep_padding else p.grid[0]) * self.per_tile for p in pictures]

    def forward(self, pixels: Tensor, pictures: Sequence[Picture], lora: Lora | None = None) -> Tensor:
        """pixels U8 [N, C·p·p] of the real tiles -> [rows, width · (1 + taps)]: the last state, then the taps' values
        interleaved, with the class token first in every tile. lora: of all patches, a run each picture."""
        packing = self._packing(pictures, lora)
        x, taps = self._embedded(pixels, packing), []
        for i, layer in enumerate(self.layers):
            x = layer(x, packing.attended)
            if i in self.spec.taps:
                taps.append(x)
        x = self._between(x, packing)
        for layer in self.global_layers:
            x = layer(x, packing.attended)
        return self._features(x, taps, packing)

    def stages(self, pictures: Sequence[Picture], lora: Lora | None = None) -> list[Stage]:
        """From "pixels" to "features"."""
        packing, taps = self._packing(pictures, lora), [f"tap.{i}" for i in sorted(self.spec.taps)]

        def run(i: int | None, layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
            x = layer(x, packing.attended)
            return (x, x) if i in self.spec.taps else (x,)

        return [
            Stage("embed", ("pixels",), ("x",), lambda pixels: (self._embedded(pixels, packing),)),
            *(
                Stage(f"layers.{i}", ("x",), ("x", *(t for t in taps if t == f"tap.{i}")), partial(run, i, layer))
                for i, layer in enumerate(self.layers)
            ),
            Stage("between", ("x",), ("x",), lambda x: (self._between(x, packing),)),
            *(
                Stage(f"global_layers.{i}", ("x",), ("x",), partial(run, None, layer))
                for i, layer in enumerate(self.global_layers)
            ),
            Stage("features", ("x", *taps), ("features",), lambda x, *taps: (self._features(x, taps, packing),)),
        ]

    def _packing(self, pictures: Sequence[Picture], lora: Lora | None) -> _Packing:
        """Each picture's real rows are brought to the front, then those of its other tiles, then the odd ends."""
        spec, device, order, real = self.spec, self.class_token.device, [], []
        padded = -(-self.per_tile // MULTIPLE) * MULTIPLE
        place = torch.arange(spec.max_tiles * padded).view(spec.max_tiles, padded)
        for i, picture in enumerate(pictures):
            whole = torch.cat([place[:, : self.per_tile].flatten(), place[:, self.per_tile :].flatten()])
            order.append(whole + i * place.numel())
            real.append(picture.grid[0] * self.per_tile)
        lengths = [place.numel()] * len(pictures)
        kept = [torch.arange(n) + i * place.numel() for i, n in enumerate(self.lengths(pictures))]
        return _Packing(
            tiles=[p.grid[0] for p in pictures],
            kind=torch.tensor([spec.arrangements.index(p.tiles) + 1 for p in pictures], device=device),
            order=torch.cat(order).to(device),
            attended=Attended(Segments(lengths, real), None, None if lora is None else lora.resized(lengths)),
            kept=torch.cat(kept).to(device),
        )

    def _between(self, x: Tensor, packing: _Packing) -> Tensor:
        """From the last local layer to the first global one."""
        shape = (len(packing.tiles), self.spec.max_tiles, -1, self.spec.width)
        spread = torch.zeros_like(x).index_copy(0, packing.order, self.post_norm(x)).view(shape)
        spread = spread + self.after_tiles(packing.kind)[:, :, None]
        return spread.flatten(0, 2).index_select(0, packing.order)

    def _features(self, x: Tensor, taps: Sequence[Tensor], packing: _Packing) -> Tensor:
        x = torch.cat([x, torch.stack(list(taps), -1).flatten(-2)], -1) if taps else x
        return x.index_select(0, packing.kept)

    def _embedded(self, pixels: Tensor, packing: _Packing) -> Tensor:
        """[P·tiles·padded, width], in the packing's order; the patches of padding tiles are zeros."""
        spec, n = self.spec, self.per_tile - 1
        padded = [
            F.pad(x.view(t, n, -1), (0, 0, 0, 0, 0, spec.max_tiles - t))
            for x, t in zip(self.patch(pixels).split([t * n for t in packing.tiles]), packing.tiles, strict=True)
        ]
        x = torch.stack(padded) + self.before_tiles(packing.kind)[:, :, None]
        cls = self.class_token.to(x.dtype).expand(*x.shape[:2], 1, -1)
        x = torch.cat([cls, x], 2) + (1 - self.tile_positions.gate.tanh()) * self.positions
        x = self.pre_norm(x + self.tile_positions(packing.kind).view(x.shape))
        return F.pad(x, (0, 0, 0, -self.per_tile % MULTIPLE)).flatten(0, 2).index_select(0, packing.order)
