"""What a checkpoint is: its directory, read without touching weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, from its header."""

    file: Path
    dtype: str  # as safetensors writes it: F32, BF16, F16, I8, ...
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint directory, read without touching weights or running anything in it."""

    directory: Path
    config: Mapping[str, object]
    preprocessor: Mapping[str, object] | None = None  # the image processor's settings; None: they are nowhere
    generation: Mapping[str, object] = field(default_factory=dict)
    tokenizer_config: Mapping[str, object] = field(default_factory=dict)
    chat_template: str | None = None
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # weight files beside those that are read
    options: Mapping[str, str] = field(default_factory=dict)  # what the operator asked of the family (--model-option)
    plugins: frozenset[str] | None = None  # the only plugins that may be used (--plugins); None: all that are installed
