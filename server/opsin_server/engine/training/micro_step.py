"""One micro-batch through the model and back: its gradient is added to the trainee's."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opsin_kernels.transfer import moved
from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.trainee_lora import TraineeLora
from opsin_server.engine.training.kept_bytes import KeptBytes
from opsin_server.engine.training.losses import (
    TokenLosses,
    UnlearnedLosses,
    token_losses,
    trains_head,
    unlearned_losses,
)
from opsin_server.engine.training.micro_batch import MicroBatch
from opsin_server.engine.training.objectives import Objective
from opsin_server.engine.training.pieces import Piece, Tape
from opsin_server.ipc.item import Item
from opsin_server.ipc.training_rows import Pixels

PixelsOf = Callable[[Item], Pixels]


@dataclass(frozen=True)
class VisualInput:
    """What the visual tokens of a micro-batch are made from, or are: pixels, where tower or projector is trained;
    tokens [M, H · (1 + levels)] of all its pictures."""

    pixels: Sequence[Pixels] = ()
    tokens: Tensor | None = None


def forward(
    model: Model, batch: MicroBatch, visual: VisualInput, lora: TraineeLora | None, tape: Tape
) -> Generator[Piece, None, Tensor]:
    """The last layer's states of the labelled rows [M, H]."""
    if batch.items:
        if visual.tokens is not None:
            tape.give("tokens", visual.tokens)
        else:
            yield from encode(model, batch.items, visual.pixels, lora, tape)
    stages = model.stages(batch.ids, batch.given(lora), batch.visual)
    if (takes := batch.takes) is not None:
        stages = [takes, *stages]
    yield from tape.forward(stages, "language", len(batch.ids))
    return tape.values["x"].tensor


def encode(
    model: Model, items: Sequence[Item], pixels: Sequence[Pixels], lora: TraineeLora | None, tape: Tape
) -> Generator[Piece, None, None]:
    """From pixels to the visual tokens of all items, "tokens"."""
    device = next(iter(model.decoder.parameters())).device
    patches = torch.cat([torch.from_numpy(one.patches) for one in pixels])
    tape.give("pixels", moved(patches, device))
    orders = [None if one.arrange is None else moved(torch.from_numpy(one.arrange).long(), device) for one in pixels]
    yield from tape.forward(model.encode_stages(items, orders, lora), "vision", len(patches))


def train(
    model: Model, batch: MicroBatch, visual: VisualInput, lora: TraineeLora, kept: KeptBytes, objective: Objective
) -> Generator[Piece, None, TokenLosses]:
    """Adds what the micro-batch adds to the gradient of the step's loss."""
    tape, decoder = Tape(kept), model.decoder
    try:
        states, weights = (yield from forward(model, batch, visual, lora, tape)), None
        if trains_head(lora):  # its gradient wants the weights, which follow from all losses
            before = yield from unlearned_losses(decoder, states, batch.targets, lora)
            weights = objective.weights(before.losses)
        found = yield from token_losses(decoder, states, batch.targets, lora, weights)
        tape.values["x"].collect((found.gradient * objective.weights(found.losses)[:, None]).to(states.dtype))
        yield from tape.backward()
    finally:
        tape.drop()
    return found


def evaluate(
    model: Model, batch: MicroBatch, visual: VisualInput, lora: TraineeLora | None
) -> Generator[Piece, None, UnlearnedLosses]:
    """Without gradients. lora None: of the base model."""
    states = yield from forward(model, batch, visual, lora, Tape(KeptBytes(0), trains=False))
    return (yield from unlearned_losses(model.decoder, states, batch.targets, lora))
