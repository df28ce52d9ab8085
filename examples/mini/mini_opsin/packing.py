"""Packs many questions about one picture into one row behind a shared prefix.

Each question with its answer is a branch: it attends to the prefix (the picture) and to itself, and its positions
restart after the prefix, so that a row of five branches equals five conversations and costs one picture.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mini_opsin.encoder import Encoder
from mini_opsin.questions import Asked


@dataclass
class Layout:
    """Where everything of a row sits. Rows share one prefix form; ids [R, T] are the packed branches."""

    prefix: list[list[int]]  # ids before, between and after the images
    grid: tuple[int, int]  # visual tokens of one image (rows, columns)
    ids: Tensor  # [R, T]
    offset: Tensor  # [R, T] position of a token within its branch
    branch: Tensor  # [R, T] branch number, -1 = padding

    def prefix_positions(self) -> tuple[Tensor, int]:
        """M-RoPE positions [3, P] of the prefix, and the position of whatever follows."""
        parts, at = [], 0
        rows, columns = torch.meshgrid(torch.arange(self.grid[0]), torch.arange(self.grid[1]), indexing="ij")
        for i, ids in enumerate(self.prefix):
            if i:
                parts.append(torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1) + at)
                at += max(self.grid)
            parts.append((torch.arange(len(ids)) + at).expand(3, -1))
            at += len(ids)
        return torch.cat(parts, 1), at

    def positions(self) -> Tensor:
        """M-RoPE positions [3, R, P + T] of whole rows."""
        prefix, after = self.prefix_positions()
        rows = self.ids.shape[0]
        branches = (self.offset + after).expand(3, -1, -1)
        return torch.cat([prefix[:, None].expand(3, rows, prefix.shape[1]), branches], 2)

    def mask(self, prefix: int, dtype: torch.dtype) -> Tensor:
        """Additive [R, 1, P + T, P + T]: causal; a branch sees the prefix and itself."""
        r, t = self.ids.shape
        tags = torch.cat([torch.full((r, prefix), -2), self.branch], 1)
        same = (tags[:, :, None] == tags[:, None, :]) | (tags == -2)[:, None, :]
        allowed = same & torch.ones(prefix + t, prefix + t, dtype=torch.bool).tril()
        return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -1e4)[:, None]


@dataclass
class Packed:
    """Packed rows and their S answer tokens."""

    layout: Layout
    target_at: Tensor  # [S] flat indices into [R * T]: the tokens that must predict
    target: Tensor  # [S] the tokens to predict
    weight: Tensor  # [S] 1/sqrt(the answer's length), so that long captions do not drown one-token answers
    asked: list[Asked]  # in the order of target
    lengths: list[int]  # answer tokens of each, its end token included


@dataclass
class _Marks:
    at: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, asked: Asked, tokens: list[int], first: int, learned: list[bool] | None = None) -> None:
        """An answer whose first token is predicted at the flat index `first`. learned: which of its tokens are."""
        places = [i for i in range(len(tokens)) if learned is None or learned[i]]
        n = len(places)
        self.at += [first + i for i in places]
        self.target += [tokens[i] for i in places]
        self.weight += [n**-0.5] * n
        self.asked.append(asked)
        self.lengths.append(n)


def pack(
    encoder: Encoder,
    rng: random.Random,
    rows: list[list[Asked]],
    budget: int,
    prefix: list[list[int]],
    grid: tuple[int, int],
    multi_turn: float,
) -> Packed:
    """Questions of each row -> ids of at most `budget` tokens a row; what does not fit is left out.

    multi_turn: the share of branches that hold two questions as two turns of one conversation.
    """
    ids = torch.zeros(len(rows), budget, dtype=torch.long)
    offset, branch = torch.zeros_like(ids), torch.full_like(ids, -1)
    marks = _Marks()
    for r, items in enumerate(rows):
        used, number, queue = 0, 0, list(items)
        while queue:
            turns = [queue.pop(0)]
            if queue and rng.random() < multi_turn:
                turns.append(queue.pop(0))
            tokens, spans = encoder.branch([(t.question, t.answer) for t in turns])
            if used + len(tokens) > budget:
                continue
            place = slice(used, used + len(tokens))
            ids[r, place], offset[r, place] = torch.tensor(tokens), torch.arange(len(tokens))
            branch[r, place] = number
            for turn, (a, b) in zip(turns, spans, strict=True):
                learned = [not given for given in encoder.written_by_schema(turn.answer)] if turn.held else None
                marks.add(turn, tokens[a:b], r * budget + used + a - 1, learned)
            used, number = used + len(tokens), number + 1
    width = int((branch >= 0).any(0).nonzero().max()) + 1  # drop the columns that no row needs
    at = torch.tensor(marks.at)
    layout = Layout(prefix, grid, ids[:, :width], offset[:, :width], branch[:, :width])
    at = at // budget * width + at % budget
    return Packed(layout, at, torch.tensor(marks.target), torch.tensor(marks.weight), marks.asked, marks.lengths)
