"""The loss of a trainer's chunk of rows with its gradient, as bench/kernels.py measures it."""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from device import Device
from kernel_job import Call, Job
from torch import Tensor

from opsin_kernels import linear_cross_entropy as losses


def cross_entropy(device: Device, rows: int, width: int, vocabulary: int) -> Job:
    """Its floor is the weight read once; two products of the library read it twice."""

    def make() -> tuple:
        weight = device.random(vocabulary, width) * width**-0.5
        return device.random(rows, width), weight, torch.randint(vocabulary, (rows,), device=device.device)

    def run(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return losses.linear_cross_entropy_with_gradient(x, weight, labels)[1]

    def define(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        _, gradient, _ = losses.linear_cross_entropy_ref(x, weight, labels)
        assert gradient is not None
        return gradient

    def library(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(F.linear(x, weight).float(), labels, reduction="sum")
        return torch.autograd.grad(loss, x)[0]

    others: dict[str, Call] = {"torch": library}
    if device.cuda and find_spec("liger_kernel") is not None:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        def liger(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            loss = LigerFusedLinearCrossEntropyFunction.apply(x, weight, labels)
            return torch.autograd.grad(loss[0] if isinstance(loss, tuple) else loss, x)[0]

        others["liger"] = liger
    moved, work = (vocabulary + 2 * rows) * width * device.dtype.itemsize, 4.0 * rows * width * vocabulary
    name = f"cross-entropy and gradient {rows} x {width} of {vocabulary:,}"
    return Job(name, make, run, define, others, moved, work, uncaptured=frozenset(others))
