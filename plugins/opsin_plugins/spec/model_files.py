"""What a checkpoint is: its directory, read without touching weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from opsin_plugins.spec.packing import Packing


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, from its header. packing: how it is stored where it is no plain tensor of a
    safetensors file; its shape is then that of the weight, and its dtype the name of what is packed."""

    file: Path
    dtype: str  # as safetensors writes it: F32, BF16, F16, I8, ...; or of a packed one: Q4_K, gptq, ...
    shape: tuple[int, ...]
    packing: Packing | None = None


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint directory, read without touching weights or running anything in it."""

    directory: Path
    config: Mapping[str, object]
    preprocessor: Mapping[str, object] | None = None  # the image processor's settings; None: they are nowhere
    video_preprocessor: Mapping[str, object] | None = None  # the video processor's; None: the image processor's count
    generation: Mapping[str, object] = field(default_factory=dict)
    tokenizer_config: Mapping[str, object] = field(default_factory=dict)
    chat_template: str | None = None
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)  # the model's, by the names that families know
    stored: Mapping[str, TensorInfo] | None = None  # as the files name them; None: these are the same
    ignored: tuple[str, ...] = ()  # weight files beside those that are read
    notes: tuple[str, ...] = ()  # sentences about the files that an operator may not expect
    options: Mapping[str, str] = field(default_factory=dict)  # what the operator asked of the family (--model-option)
    plugins: frozenset[str] | None = None  # the only plugins that may be used (--plugins); None: all that are installed

    @property
    def stored_tensors(self) -> Mapping[str, TensorInfo]:
        return self.tensors if self.stored is None else self.stored
