"""The text tower of a dual encoder: token ids to one state a text. Texts are packed along T; each sees only itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from opsin_kernels.layout import Segments
from opsin_plugins.blocks.layers import make_norm, parameter
from opsin_plugins.blocks.tower import Attended, TowerLayer
from opsin_plugins.spec import TextTowerSpec


class TextTower(nn.Module):
    def __init__(self, spec: TextTowerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tokens = parameter(spec.vocab, spec.width)
        self.positions = parameter(spec.context, spec.width)
        self.layers = nn.ModuleList(TowerLayer(spec) for _ in range(spec.layers))
        self.final_norm = make_norm(spec.norm, spec.width, spec.norm_eps)

    def forward(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """ids I64 [T] of texts with these lengths -> [S, width], the state that stands for each."""
        places = torch.cat([torch.arange(n) for n in lengths]).to(ids.device)
        x = self.tokens.index_select(0, ids) + self.positions.index_select(0, places)
        where = Attended(Segments(lengths), None, None, self.spec.causal)
        for layer in self.layers:
            x = layer(x, where)
        return self.final_norm(x.index_select(0, self._pooled(ids, lengths)))

    def _pooled(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """I64 [S]: the row of each text whose state stands for it. A text without the token that is looked for has its
        first, as transformers takes it."""
        starts = [0, *accumulate(lengths)][:-1]
        if self.spec.pool == "last":
            return torch.tensor([at + n - 1 for at, n in zip(starts, lengths, strict=True)], device=ids.device)
        marks = ids if self.spec.pool == "largest" else (ids == self.spec.eos).int()
        found = [part.argmax() for part in marks.split(list(lengths))]
        return torch.stack(found) + torch.tensor(starts, device=ids.device)
