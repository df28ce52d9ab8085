"""From the decoder's states of labelled rows to losses and the states' gradients, a chunk of rows a piece."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_kernels.linear_cross_entropy import (
    Head,
    PackedHead,
    linear_cross_entropy,
    linear_cross_entropy_with_gradient,
)
from opsin_plugins.blocks.decoder import HEAD, Decoder
from opsin_plugins.blocks.trainee_lora import TraineeLora
from opsin_plugins.blocks.weight_format import Dense
from opsin_server.engine.training.pieces import Piece

CHUNK = 64  # rows


@dataclass(frozen=True)
class UnlearnedLosses:
    """losses F32 [M]: minus the log probability of each target. hits bool [M]: whether it is the likeliest token."""

    losses: Tensor
    hits: Tensor


@dataclass(frozen=True)
class TokenLosses(UnlearnedLosses):
    """gradient [M, H]: of each loss by its own state."""

    gradient: Tensor


def trains_head(lora: TraineeLora) -> bool:
    return HEAD in lora.linears


def token_losses(
    decoder: Decoder, states: Tensor, targets: Tensor, lora: TraineeLora, weights: Tensor | None
) -> Generator[Piece, None, TokenLosses]:
    """states [M, H], targets I64 [M]. weights [M]: what each row's loss is multiplied with before a head that is
    trained gets its gradient (`gradient` itself is without them); else None."""
    losses = torch.empty(len(states), device=states.device)
    gradient = torch.empty_like(states)
    hits = torch.empty(len(states), dtype=torch.bool, device=states.device)
    for first in range(0, len(states), CHUNK):
        rows = slice(first, min(first + CHUNK, len(states)))
        yield Piece("loss", rows.stop - rows.start)
        if weights is None:
            found = _chunk(decoder, states[rows], targets[rows])
        else:
            found = _chunk_of_trained_head(decoder, states[rows], targets[rows], lora, weights[rows])
        losses[rows], gradient[rows], hits[rows] = found
    return TokenLosses(losses, hits, gradient)


def unlearned_losses(
    decoder: Decoder, states: Tensor, targets: Tensor, lora: TraineeLora | None
) -> Generator[Piece, None, UnlearnedLosses]:
    """Of rows that nothing is learned from."""
    losses, hits = [], []
    for first in range(0, len(states), CHUNK):
        rows = slice(first, first + CHUNK)
        yield Piece("evaluation", len(states[rows]))
        with torch.no_grad():
            found = _unlearned(decoder, states[rows], targets[rows], lora)
        losses.append(found[0])
        hits.append(found[1])
    return UnlearnedLosses(torch.cat(losses), torch.cat(hits))


def _unlearned(decoder: Decoder, states: Tensor, targets: Tensor, lora: TraineeLora | None) -> tuple[Tensor, Tensor]:
    if lora is None or not trains_head(lora):
        return linear_cross_entropy(decoder.norm(states), head_weight(decoder), targets)
    logits = decoder.logits(states, lora).float()
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(1) == targets


def _chunk(decoder: Decoder, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = states.detach().requires_grad_()
    with torch.enable_grad():
        normed = decoder.norm(x)
    losses, of_normed, hits = linear_cross_entropy_with_gradient(normed.detach(), head_weight(decoder), targets)
    torch.autograd.backward(normed, of_normed)
    assert x.grad is not None
    return losses, x.grad, hits


def _chunk_of_trained_head(
    decoder: Decoder, states: Tensor, targets: Tensor, lora: TraineeLora, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x = states.detach().requires_grad_()
    with torch.enable_grad():
        logits = decoder.logits(x, lora).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        torch.autograd.backward(losses, weights)
    assert x.grad is not None
    return losses.detach(), x.grad / weights[:, None], logits.detach().argmax(1) == targets


def head_weight(decoder: Decoder) -> Head:
    """[vocab, H]. What a model of float32 keeps in fewer bits is floats a block at a time."""
    stored = decoder.embedding.stored if decoder.head is None else decoder.head.stored
    dtype, vocab = decoder.embedding.dtype, decoder.spec.vocab
    if isinstance(stored, Dense):
        return stored.weight.detach()[:vocab]
    if dtype == torch.float32 and next(stored.buffers()).is_cpu:
        return PackedHead((vocab, stored.inputs), stored.rows)
    return stored.dequantized().to(dtype)[:vocab]
