"""From the decoder's states of labelled rows to losses and the states' gradients, a chunk of rows a piece."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_kernels.linear_cross_entropy import linear_cross_entropy_with_gradient
from opsin_plugins.blocks.decoder import HEAD, Decoder
from opsin_plugins.blocks.trainee_lora import TraineeLora
from opsin_plugins.blocks.weight_formats import Dense
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


def token_losses(
    decoder: Decoder, states: Tensor, targets: Tensor, lora: TraineeLora | None, scale: float = 1.0
) -> Generator[Piece, None, TokenLosses]:
    """states [M, H], targets I64 [M]. scale: what each row's loss is multiplied with before a trained head gets its
    gradient (`gradient` itself is without it)."""
    losses = torch.empty(len(states), device=states.device)
    gradient = torch.empty_like(states)
    hits = torch.empty(len(states), dtype=torch.bool, device=states.device)
    for first in range(0, len(states), CHUNK):
        rows = slice(first, min(first + CHUNK, len(states)))
        yield Piece("loss", rows.stop - rows.start)
        found = _chunk(decoder, states[rows], targets[rows], lora, scale)
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
            logits = decoder.logits(states[rows], lora).float()
            losses.append(F.cross_entropy(logits, targets[rows], reduction="none"))
            hits.append(logits.argmax(1) == targets[rows])
    return UnlearnedLosses(torch.cat(losses), torch.cat(hits))


def _chunk(
    decoder: Decoder, states: Tensor, targets: Tensor, lora: TraineeLora | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    x = states.detach().requires_grad_()
    if lora is not None and HEAD in lora.linears:
        with torch.enable_grad():
            logits = decoder.logits(x, lora).float()
            losses = F.cross_entropy(logits, targets, reduction="none")
            torch.autograd.backward(losses, torch.full_like(losses, scale))
        assert x.grad is not None
        return losses.detach(), x.grad / scale, logits.detach().argmax(1) == targets
    with torch.enable_grad():
        normed = decoder.norm(x)
    losses, of_normed, hits = linear_cross_entropy_with_gradient(normed.detach(), head_weight(decoder), targets)
    torch.autograd.backward(normed, of_normed)
    assert x.grad is not None
    return losses, x.grad, hits


def head_weight(decoder: Decoder) -> Tensor:
    """[vocab, H]."""
    if decoder.head is None:
        return decoder.embedding.weight[: decoder.spec.vocab].detach()
    assert isinstance(decoder.head.stored, Dense)
    return decoder.head.stored.weight.detach()
