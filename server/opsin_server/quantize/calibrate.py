"""Weights rounded by what their inputs are on data: a layer at a time, which sees what the rounded layers before it
make of the data. Of all activations only the states between two layers are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from opsin_plugins.blocks.checkpoint import Checkpoint, reordered
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.weight_policy import VISION
from opsin_plugins.loading.weight_matching import Source
from opsin_plugins.spec import Reorder
from opsin_server.quantize.compensate import Moments, compensation
from opsin_server.quantize.rows import Rows
from opsin_server.quantize.schemes import Rounded, Scheme, Seen
from opsin_server.quantize.walk import Walk, picture_walks, row_walks, run_heard

MOMENTS_BYTES = 2**30  # of the second moments that are gathered in one run through a layer; one linear's at least


class Calibration:
    """chosen: keys of the checkpoint that are rounded. written: what became of them, as far as data said something of
    their inputs. tick: called behind each."""

    def __init__(
        self,
        model: Model,
        checkpoint: Checkpoint,
        chosen: Iterable[str],
        scheme: Scheme,
        group: int,
        tick: Callable[[], None],
    ) -> None:
        self._model = model
        self._checkpoint, self._scheme, self._group, self._tick = checkpoint, scheme, group, tick
        self._chosen = _one_linear(checkpoint.plan, chosen)
        self.written: dict[str, Rounded] = {}
        self._waiting = {
            module.name: module
            for module in model.modules()
            if isinstance(module, Linear)
            and any(s.key in self._chosen for s in checkpoint.plan[f"{module.name}.weight"])
        }

    @torch.no_grad()
    def run(self, rows: Rows) -> None:
        """The tower first, if anything of it is rounded."""
        batches = () if rows.calibrated is None else rows.calibrated.batches
        pictures = picture_walks(self._model, batches, rows.pixels_of)
        if sees := any(name.startswith(VISION) for name in self._waiting):
            self._go_through(list(pictures.values()))
        tokens = {digest: walk.end(len(walk) if sees else 0) for digest, walk in pictures.items()}
        self._go_through(row_walks(self._model, batches, tokens))

    def _go_through(self, walks: Sequence[Walk]) -> None:
        """Brings all walks to their ends, and rounds what they pass."""
        for number in range(len(walks[0]) if walks else 0):
            while gathered := self._gather(walks, number):
                for name in list(gathered):
                    self._round(name, gathered.pop(name))
            for walk in walks:
                walk.step(number)

    def _gather(self, walks: Sequence[Walk], number: int) -> dict[str, Moments]:
        """Of the linears of a stage that are yet to be rounded, in the order in which they run: as many as there is
        room for."""
        found: dict[str, Moments] = {}

        def hear(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(module, Linear)
            if module.name not in found:
                size = sum(moments.total.nbytes for moments in found.values())
                if found and size + 4 * module.inputs**2 > MOMENTS_BYTES:
                    return
                found[module.name] = Moments(module.inputs)
            found[module.name].add(given[0])

        run_heard(walks, number, [module.register_forward_pre_hook(hear) for module in self._waiting.values()])
        return found

    def _round(self, name: str, moments: Moments) -> None:
        del self._waiting[name]
        meant: dict[str, Tensor] = {}
        seen: dict[Reorder | None, Seen] = {}
        for source in self._checkpoint.plan[f"{name}.weight"]:
            if source.key not in self._chosen:
                continue
            columns = source.reorder if source.reorder is not None and source.reorder.axis == 1 else None
            if columns not in seen:
                seen[columns] = _seen(moments, columns)
            weight = self._checkpoint.read(source.key)
            assert isinstance(weight, Tensor)
            self.written[source.key], meant[source.key] = self._scheme.write(weight, self._group, seen[columns])
            self._tick()
        self._checkpoint.fill(f"{name}.weight", meant)


def _one_linear(sources: Mapping[str, Sequence[Source]], chosen: Iterable[str]) -> set[str]:
    """Keys of which all numbers meet the same inputs, as columns: one that several linears share meets several, and the
    columns of a matrix that is stored transposed are outputs."""
    uses = Counter(source.key for row in sources.values() for source in row)
    turned = {s.key for row in sources.values() for s in row if s.reorder is not None and s.reorder.axis is None}
    return {key for key in chosen if uses[key] == 1 and key not in turned}


def _seen(moments: Moments, columns: Reorder | None) -> Seen:
    """Of the inputs as a published weight has them, which had its columns put into another order."""
    mean = moments.total / max(1, moments.count)
    if columns is not None:
        back = reordered(torch.arange(len(mean))[None], columns)[0].argsort()
        mean = mean[back][:, back]
    order = mean.diagonal().argsort(descending=True)
    return Seen(mean, compensation(mean[order][:, order]), order)
