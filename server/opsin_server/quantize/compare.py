"""How far a rounded model is from the one that it was: next-token distributions on rows, and outputs of each linear.

The head and the final norm are never rounded, so the states before them are all that is kept of what a model says.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from opsin_plugins.blocks.checkpoint import Checkpoint
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.weight_policy import VISION
from opsin_server.quantize.rows import Rows
from opsin_server.quantize.walk import Walk, picture_walks, row_walks, run_heard

CHUNK = 128  # tokens whose distributions are there at once
LAYER_SECONDS = 180.0  # that all layers alone may take, as estimated beforehand
LAYER = re.compile(r"(?!projector)(.+?\.\d+)\.")


@dataclass(frozen=True)
class Distance:
    """Of next-token distributions: KL(unquantized ‖ quantized) in nats, the mean over all tokens of answers; and the
    share of these for which both models have the same most probable token."""

    tokens: int
    kl: float
    agreement: float


@dataclass
class Compared:
    """layers: by name, where that one alone is rounded; empty: it would have taken too long. outputs: by the key of
    each tensor that met data, two sums of squares: of what its outputs are off by, and of the outputs."""

    whole: Distance
    layers: dict[str, Distance] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def layer_of(path: str) -> str:
    """ "decoder.layers.3" of "decoder.layers.3.mlp.down"; of what stands in no layer its part: "projector"."""
    found = LAYER.match(path)
    return path.partition(".")[0] if found is None else found[1]


@torch.no_grad()
def distance(model: Model, reference: Sequence[Tensor], others: Sequence[Tensor]) -> Distance:
    """Of states before the final norm, [M, H] each."""
    total, same, count = torch.zeros((), dtype=torch.float64), 0, sum(map(len, reference))
    for one, other in zip(reference, others, strict=True):
        for a, b in zip(one.split(CHUNK), other.split(CHUNK), strict=True):
            was, became = (model.logits(states).float().log_softmax(-1) for states in (a, b))
            total += (was.exp() * (was - became)).sum(dtype=torch.float64)
            same += int((was.argmax(-1) == became.argmax(-1)).sum())
    return Distance(count, float((total / count).clamp(min=0)), same / count)  # (no number stays none)


@torch.no_grad()
def states(model: Model, rows: Rows) -> list[Tensor]:
    """Of all tokens that are compared, before the final norm; a tensor [M, H] each batch."""
    pictures = picture_walks(model, rows.compared.batches, rows.pixels_of)
    return ends(row_walks(model, rows.compared.batches, tokens_of(pictures)), rows)


def ends(walks: Sequence[Walk], rows: Rows, at: int = 0) -> list[Tensor]:
    """The same of rows that are on their way, from a stage on."""
    wanted = (batch.inputs.wanted for batch in rows.compared.batches)
    return [walk.end(at) if want is None else walk.end(at)[want] for walk, want in zip(walks, wanted, strict=True)]


def tokens_of(pictures: Mapping[bytes, Walk], at: int = 0) -> dict[bytes, Tensor]:
    """Visual tokens of pictures that are on their way, from a stage on."""
    return {digest: walk.end(at) for digest, walk in pictures.items()}


class Comparison:
    """base, rounded: checkpoints of one model, which holds the weights of `base` before and behind each method. names:
    of the weights in which they differ."""

    def __init__(self, model: Model, base: Checkpoint, rounded: Checkpoint, names: Iterable[str], rows: Rows) -> None:
        self._model, self._base, self._rounded, self._rows = model, base, rounded, rows
        differ = set(names)
        linears = (module for module in model.modules() if isinstance(module, Linear))
        self._linears = {module.name: module for module in linears if f"{module.name}.weight" in differ}

        self._sees = any(name.startswith(VISION) for name in self._linears)

    @property
    def steps(self) -> int:
        """Of `run`: both models whole, and each linear's layer."""
        return 2 + len({layer_of(name) for name in self._linears})

    @torch.no_grad()
    def run(self, tick: Callable[[], None]) -> Compared:
        """tick: called behind each step."""
        began = time.monotonic()
        reference = states(self._model, self._rows)
        seconds = time.monotonic() - began
        tick()
        with self._holding(self._linears):
            found = Compared(distance(self._model, reference, states(self._model, self._rows)))
        tick()
        batches = self._rows.compared.batches
        pictures = picture_walks(self._model, batches, self._rows.pixels_of)
        stages = max(map(len, pictures.values()), default=0) if self._sees else 0
        if seconds * (self._model.spec.decoder.layers / 2 + stages) > LAYER_SECONDS:
            reference = []

        def from_pictures(at: int) -> list[Tensor]:
            return ends(row_walks(self._model, batches, tokens_of(pictures, at)), self._rows)

        if stages:
            self._go_through(list(pictures.values()), from_pictures, reference, found, tick)
        walks = row_walks(self._model, batches, tokens_of(pictures, stages))
        self._go_through(walks, lambda at: ends(walks, self._rows, at), reference, found, tick)
        return found

    def _go_through(
        self,
        walks: Sequence[Walk],
        finish: Callable[[int], list[Tensor]],
        reference: Sequence[Tensor],
        found: Compared,
        tick: Callable[[], None],
    ) -> None:
        """Brings all walks to their ends. finish: from a stage on, to the states that are compared. reference: none: no
        layer is rounded alone."""
        for number in range(len(walks[0])):
            for layer, names in groupby(self._hear(walks, number, found), layer_of):
                if reference:
                    with self._holding(names):
                        found.layers[layer] = distance(self._model, reference, finish(number))
                tick()
            for walk in walks:
                walk.step(number)

    def _hear(self, walks: Sequence[Walk], number: int, found: Compared) -> list[str]:
        """Adds the outputs of a stage's linears to what is found. The linears that ran, in their order."""
        changes: dict[str, Tensor] = {}

        def hear(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            assert isinstance(module, Linear)
            if module.name not in changes:
                changes[module.name] = (
                    self._rounded.weight(f"{module.name}.weight") - module.stored.dequantized().float()
                )
            size = out if module.bias is None else out - module.bias
            error = given[0].float() @ changes[module.name].T
            self._count(found, module.name, torch.stack([error, size.float()]).square().sum(1))

        run_heard(walks, number, [module.register_forward_hook(hear) for module in self._linears.values()])
        return list(changes)

    def _count(self, found: Compared, linear: str, sums: Tensor) -> None:
        """sums [2, N] of a linear's outputs: those of each tensor that it is made of."""
        sources = self._base.plan[f"{linear}.weight"]
        for source, part in zip(sources, sums.split([self._base.shape(s)[0] for s in sources], 1), strict=True):
            found.outputs[source.key] = found.outputs.get(source.key, torch.zeros(2)) + part.sum(1)

    @contextmanager
    def _holding(self, names: Iterable[str]) -> Iterator[None]:
        """These linears are rounded meanwhile."""
        weights = [f"{name}.weight" for name in names]
        for name in weights:
            self._rounded.fill(name)
        try:
            yield
        finally:
            for name in weights:
                self._base.fill(name)
