"""Checks of the model that the blocks make of the declaration: batches, chunks, gradients, 8-bit rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.conformance.batches import encode, paged, whole
from opsin_plugins.conformance.subject import Subject
from opsin_plugins.conformance.verdicts import Failed, Skipped, near

PACKED, PAGED = 1e-5, 1e-4
INT8 = 0.5  # standard deviations of the logits
CHUNKS = (1, 3, 7)


@torch.no_grad()
def pictures_alone(subject: Subject) -> str:
    """A picture's visual tokens do not depend on those that are encoded with it."""
    if subject.spec.vision is None:
        raise Skipped("a language model")
    items = [item for prompt in subject.prompts for item in prompt.items]
    together = encode(subject.model, items)
    errors = []
    for item, tokens in zip(items, together, strict=True):
        (alone,) = encode(subject.model, [item])
        errors.append(near(f"visual tokens of grid {item.grid}, with others and alone,", tokens, alone, PACKED))
    return _within(errors)


@torch.no_grad()
def packed(subject: Subject) -> str:
    """A prompt's logits do not depend on those that share its batch."""
    together = whole(subject.model, subject.prompts)
    errors = []
    for prompt, logits in zip(subject.prompts, together, strict=True):
        (alone,) = whole(subject.model, [prompt])
        what = f"logits of a prompt with {len(prompt.items)} pictures, in a batch and alone,"
        errors.append(near(what, logits, alone, PACKED))
    return _within(errors)


@torch.no_grad()
def chunks(subject: Subject) -> str:
    """Nor on the pieces in which it is computed, with keys and values in a paged pool."""
    expected = whole(subject.model, subject.prompts)
    errors = []
    for chunk in CHUNKS:
        for prompt, logits, once in zip(
            subject.prompts, paged(subject.model, subject.prompts, chunk), expected, strict=True
        ):
            what = f"logits of a prompt with {len(prompt.items)} pictures, in chunks of {chunk} and at once,"
            errors.append(near(what, logits, once, PAGED))
    return _within(errors)


def gradients(subject: Subject) -> str:
    """Finite, and there is one for every weight."""
    model = subject.load().requires_grad_(True)
    torch.stack([_loss(logits) for logits in whole(model, subject.prompts)]).sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    if unused:
        raise Failed(f"no gradient reaches {len(unused)} weights: {', '.join(unused[:6])}")
    wild = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if wild:
        raise Failed(f"the gradients of {len(wild)} weights are not finite: {', '.join(wild[:6])}")
    return f"{sum(1 for _ in model.parameters())} weights"


def _loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1])


@torch.no_grad()
def int8(subject: Subject) -> str:
    """Linears as 8-bit rows stay near."""
    small = subject.load(WeightPolicy("int8"))
    worst = 0.0
    for a, b in zip(whole(subject.model, subject.prompts), whole(small, subject.prompts), strict=True):
        worst = max(worst, float((a - b).abs().max() / a.std()))
    if not worst <= INT8:
        raise Failed(f"logits differ by {worst:.2f} standard deviations; the limit is {INT8}")
    return f"within {worst:.2f} standard deviations"


def _within(errors: list[float]) -> str:
    return f"within {max(errors):.0e}"
