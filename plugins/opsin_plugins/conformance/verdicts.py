"""How a check ends: it returns (with a remark, or none), or raises one of these."""

from __future__ import annotations

from torch import Tensor


class Failed(Exception):
    """The message names what differs, with both values."""


class Skipped(Exception):
    """The message says why."""


def same(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise Failed(f"{what}: {got}, not {expected}")


def near(what: str, got: Tensor, expected: Tensor, limit: float) -> float:
    """The largest difference."""
    same(f"{what}, shape", tuple(got.shape), tuple(expected.shape))
    error = float((got - expected).abs().max())
    if not error <= limit:  # NaN is no number at all
        raise Failed(f"{what} differ by {error:.2g}; the limit is {limit:g}")
    return error
