"""A made-up request: random tokens behind random pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from opsin_plugins.spec import Architecture, ImageBudget, ModelSpec
from opsin_server.ipc.messages import Arrays, Sampling, Submit, arrays_of, describe, visible_images


def made_up_request(
    architecture: Architecture,
    spec: ModelSpec,
    name: str,
    text: int,
    edges: Sequence[int],
    count: int,
    sampling: Sampling = Sampling(temperature=0.0),  # noqa: B008
) -> tuple[Submit, Arrays]:
    """text: tokens; edges: pixels of each square picture; count: tokens that are generated, whatever they are."""
    random = np.random.default_rng(int.from_bytes(name.encode()) % 2**32)
    drawn = random.integers(0, spec.decoder.vocab, 2 * text + 8)
    ids = drawn[drawn != spec.image_token][:text].tolist()
    if edges:
        assert spec.image_token is not None
        ids = [spec.image_token] * len(edges) + ids
    pictures = [random.integers(0, 255, (edge, edge, 3), np.uint8) for edge in edges]
    items = architecture.preprocess(pictures, spec, ImageBudget())
    items = [replace(item, digest=f"{name} {i}".encode()) for i, item in enumerate(items)]
    expanded = architecture.expand(ids, items, spec, lambda text: [0])
    positions, delta = architecture.positions(expanded, items, spec)
    message = Submit(
        name,
        sampling,
        count,
        (),
        delta,
        len(positions),
        expanded.spans,
        describe(items),
        visible_images(expanded.memory),
    )
    return message, arrays_of(expanded.ids, positions, items)
