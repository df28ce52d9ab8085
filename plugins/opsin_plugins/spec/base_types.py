"""The words that all of the contract is written in: its version, its error, arrays and configurations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

API_VERSION = 2

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu"]
Norm = Literal["layer", "rms"]
Grid = tuple[int, int, int]  # frames (or tiles), rows, columns in patches
Config = Mapping[str, object]  # a published configuration, or a part of one
Encode = Callable[[str], Sequence[int]]  # text to ids; the strings of special tokens become these tokens
Pattern = re.Pattern[str]


class SpecError(ValueError):
    """A configuration or an input that this family cannot take; the message names the value. option: the one that a
    request may have said, and that is at fault."""

    def __init__(self, message: str = "", option: str | None = None) -> None:
        super().__init__(message)
        self.option = option
