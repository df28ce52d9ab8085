"""The tensors of a composed model: which are copied, grown or drawn, and how they become shards one at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from opsin_plugins.loading.weight_files import INDEX
from opsin_plugins.spec import ProjectorSpec, SpecError, TensorInfo
from opsin_server.compose.sources import Half

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHARD_BYTES = 2**30  # what is in memory at a time; a single larger tensor is a shard of its own
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


@dataclass(frozen=True)
class Part:
    """A tensor to be written. source: what it is copied from, and as which key; None: drawn anew."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    source: TensorInfo | None = None
    key: str = ""

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * DTYPES[self.dtype].itemsize


def common_dtype(language: Half, dtype: str) -> str:
    """What tower and projector are stored as. dtype "auto": as the language model's embedding."""
    return NAMES.get(dtype) or language.files.tensors[language.names[EMBEDDING]].dtype


def projector_parts(spec: ProjectorSpec, dtype: str) -> list[Part]:
    """LLaVA's two linear layers, in the order in which one seed draws them."""
    hidden, joined = spec.hidden, spec.in_width * spec.merge**2
    shapes: dict[str, tuple[int, ...]] = {
        "linear_1.weight": (hidden, joined),
        "linear_2.weight": (spec.out_width, hidden),
        "linear_1.bias": (hidden,),
        "linear_2.bias": (spec.out_width,),
    }
    return [Part(f"multi_modal_projector.{name}", shape, dtype) for name, shape in shapes.items()]


def copied_parts(encoder: Half, language: Half, rows: int, dtype: str) -> list[Part]:
    """rows: of the embedding, at least. dtype "auto": the language model's tensors stay as they are. Raises SpecError
    for tensors that are no floats."""
    wanted, common = NAMES.get(dtype), common_dtype(language, dtype)
    parts = []
    for half, kept in ((encoder, common), (language, wanted)):
        for name, key in half.names.items():
            info = half.files.tensors[key]
            if info.dtype not in DTYPES:
                raise SpecError(f"{info.file}: {key} is stored as {info.dtype}; {', '.join(DTYPES)} are taken")
            grown = name in (EMBEDDING, HEAD) and bool(info.shape)
            shape = (max(info.shape[0], rows), *info.shape[1:]) if grown else info.shape
            parts.append(Part(name, shape, kept or info.dtype, info, key))
    # In the order of their files, so that pages are read once and forward.
    parts.sort(key=lambda part: (part.name.startswith("language"), str(part.source and part.source.file), part.key))
    return parts


def shards(parts: Sequence[Part]) -> list[list[Part]]:
    """Consecutive parts, each shard at most SHARD_BYTES unless it is one tensor."""
    found: list[list[Part]] = []
    room = 0
    for part in parts:
        if part.nbytes > room:
            found.append([])
            room = SHARD_BYTES
        found[-1].append(part)
        room -= part.nbytes
    return found


def write_shards(directory: Path, parts: Sequence[Part], seed: int) -> None:
    """Peak private memory is one shard: the sources are mapped, and one shard's copies live at a time."""
    groups, weight_map = shards(parts), dict[str, str]()
    generator = torch.Generator().manual_seed(seed)
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        with ExitStack() as stack:  # a source's pages are let go with its shard
            save_file(dict(_made(group, stack, generator)), directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys((part.name for part in group), file)
    index = {"metadata": {"total_size": sum(part.nbytes for part in parts)}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for file in set(weight_map.values()):  # safetensors makes them its user's alone; whoever reads one reads all
        (directory / file).chmod((directory / INDEX).stat().st_mode)


def _made(group: Sequence[Part], stack: ExitStack, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    opened: dict[Path, Any] = {}
    for part in group:
        if part.source is None:
            yield part.name, _drawn(part.shape, generator).to(DTYPES[part.dtype])
            continue
        file = part.source.file
        if file not in opened:
            opened[file] = stack.enter_context(safe_open(file, framework="pt"))
        yield part.name, _grown(opened[file].get_tensor(part.key), part.shape).to(DTYPES[part.dtype]).contiguous()


def _grown(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """New rows are the mean of those there are: an output head then gives a new token an ordinary logit, where zeros
    or noise could win over all others."""
    if tensor.shape == shape:
        return tensor
    mean = tensor.mean(0, keepdim=True, dtype=torch.float32).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(shape[0] - len(tensor), -1)])


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A weight [out, in] is normal with the deviation that torch gives a linear layer, 1 / sqrt(3 in), which is how
    LLaVA's projector starts; a bias is zero."""
    if len(shape) == 1:
        return torch.zeros(shape)
    return torch.randn(shape, generator=generator) * (3 * shape[1]) ** -0.5
