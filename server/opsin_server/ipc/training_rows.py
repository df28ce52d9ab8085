"""A row of training data as it crosses the door: what a prompt is, and which of its tokens are to be learned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opsin_plugins.spec import I32, U8, Span, VisibleImages
from opsin_server.ipc.item import Item

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TrainingRow:
    """ids I32 [T], placeholders at full length; positions I32 [A, T]; labels bool [T]: tokens that are to be learned,
    each from the state of the token before it (so never the first). items: pictures, by digest; their pixels come
    apart, once a job."""

    ids: I32
    positions: I32
    labels: Bools
    spans: tuple[Span, ...] = ()
    items: tuple[Item, ...] = ()
    visible: tuple[VisibleImages, ...] = ()


@dataclass(frozen=True)
class Pixels:
    """Of one item: patches U8 [N, C·p·p], and the order of its visual tokens I32 [tokens] where it is arranged."""

    patches: U8
    arrange: I32 | None = None
