"""Frequencies of rotary embeddings from their spec, in numpy; what scales them for longer contexts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from opsin_plugins.spec import RopeScaling, RopeSpec

F32 = NDArray[np.float32]


def frequencies(spec: RopeSpec, head_dim: int, stretch: int = 1) -> F32:
    """F32 [head_dim / 2], radians a position. stretch: of `RopeSpec.stretch` (dynamic NTK: theta grows with it)."""
    theta = spec.theta * stretch ** (head_dim / (head_dim - 2)) if stretch != 1 else spec.theta
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (1.0 / np.float32(theta) ** exponent).astype(np.float32)
    return plain if spec.scaling is None else _scaled(plain, spec.scaling)


def axes(spec: RopeSpec, head_dim: int) -> list[int]:
    """Which position axis each frequency follows."""
    half = head_dim // 2
    if not spec.interleaved:
        return [axis for axis, count in enumerate(spec.sections or (half,)) for _ in range(count)]
    count = len(spec.sections)
    return [i % count if i // count < spec.sections[i % count] else 0 for i in range(half)]


def _scaled(plain: F32, scaling: RopeScaling) -> F32:
    if scaling.kind == "linear":
        return (plain / np.float32(scaling.factor)).astype(np.float32)
    if scaling.kind == "factors":
        return (plain / np.array(scaling.factors, np.float32)).astype(np.float32)
    # Turns over the first training's context: few are a low frequency, many a high one. Source: arXiv 2407.21783.
    turns = scaling.trained * plain / (2 * math.pi)
    kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return (kept * plain + (1 - kept) * plain / scaling.factor).astype(np.float32)
