"""What an mmproj file says of its tower, whichever family it is of. Source: the keys clip.* of the `gguf` package."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opsin_plugins.loading.gguf.container import Container, StoredTensor
from opsin_plugins.loading.gguf.metadata import Fields
from opsin_plugins.loading.gguf.packing import tensor_info
from opsin_plugins.spec import Reorder, SpecError, TensorInfo

LAYER = re.compile(r"v\.blk\.(?P<layer>\d+)\.(?P<part>[a-z0-9_]+)\.(?P<kind>weight|bias)")
UP, DOWN = "ffn_up", "ffn_down"
PATCHES, POSITIONS = "v.patch_embd.weight", "v.position_embd.weight"


@dataclass(frozen=True)
class VisionHalf:
    """What a tower adds to a language model's files, as transformers would have it. config: of the whole model but for
    its text_config and its image token."""

    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


class TowerFile:
    """Raises SpecError, from everything in it, for a field or a tensor that is missing or is none."""

    def __init__(self, container: Container) -> None:
        self.container, self.path, self.tensors = container, container.path, container.tensors
        self.said = Fields(container).of("clip.")
        self.own = Fields(container).of("clip.vision.")
        self.width, self.heads = self.own.integer("embedding_length"), self.own.integer("attention.head_count")
        self.patch, self.layers = self.own.integer("patch_size"), self.own.integer("block_count")
        self._check_sizes()

    def _check_sizes(self) -> None:
        """What a field says of a size, tensors say too: nothing is made of a number that no tensor has."""
        last = f"v.blk.{self.layers - 1}.ln1.weight"
        if last not in self.tensors:
            raise self.wrong(f"clip.vision.block_count is {self.layers:,}, and there is no {last}")
        if (shape := self.tensor("v.blk.0.ln1.weight").shape) != (self.width,):
            raise self.wrong(f"clip.vision.embedding_length is {self.width:,}, and v.blk.0.ln1.weight has {shape}")
        kernel = self.tensor(PATCHES).shape
        if len(kernel) != 4 or kernel[2:] != (self.patch, self.patch):
            raise self.wrong(f"clip.vision.patch_size is {self.patch:,}, and {PATCHES} has the shape {list(kernel)}")

    def side(self, more: int) -> int:
        """The side of a picture, for which there is a table of positions. more: rows in it that are of no patch."""
        side, rows = self.own.integer("image_size"), self.matrix(POSITIONS)[0]
        if (side // self.patch) ** 2 + more != rows:
            raise self.wrong(
                f"clip.vision.image_size is {side:,} in patches of {self.patch}, and {POSITIONS} has {rows:,} rows"
            )
        return side

    def wrong(self, sentence: str) -> SpecError:
        return SpecError(f"{self.path}: {sentence}")

    def tensor(self, name: str) -> StoredTensor:
        if name not in self.tensors:
            raise self.wrong(f"there is no {name}")
        return self.tensors[name]

    def matrix(self, name: str) -> tuple[int, int]:
        """Rows and columns of a tensor with two dimensions."""
        shape = self.tensor(name).shape
        if len(shape) != 2:
            raise self.wrong(f"{name} has the shape {list(shape)}")
        return shape[0], shape[1]

    def joined(self, name: str, key: str, default: int) -> int:
        """How many neighbours a side a linear takes together, by the field `key`."""
        side, columns = self.own.integer(key, default), self.matrix(name)[1]
        if self.width * side**2 != columns:
            raise self.wrong(
                f"clip.vision.{key} is {side:,}, and {name} takes {columns:,} values of {self.width:,} each"
            )
        return side

    @property
    def swapped(self) -> bool:
        """The first converters called the MLP's first linear ffn_down, and the second ffn_up."""
        return self.matrix(f"v.blk.0.{DOWN}.weight")[1] == self.width

    @property
    def mlp(self) -> int:
        """The width within the MLP. What feed_forward_length says of it is wrong in files of Qwen2-VL."""
        return self.matrix(f"v.blk.0.{DOWN if self.swapped else UP}.weight")[0]

    def activation(self, gelu: str, otherwise: str) -> str:
        """gelu: which of them clip.use_gelu means in this family. otherwise: where the file names none."""
        gelus, silu = self.said.flag("use_gelu", False), self.said.flag("use_silu", False)
        if gelus and silu:
            raise self.wrong("clip.use_gelu and clip.use_silu are both set")
        return gelu if gelus else "silu" if silu else otherwise

    def normalization(self) -> dict[str, tuple[float, ...]]:
        """The image processor's settings of that name."""
        return {name: self._three(name) for name in ("image_mean", "image_std")}

    def _three(self, name: str) -> tuple[float, ...]:
        found = self.own.items(name)
        if len(found) != 3 or not all(isinstance(one, int | float) and math.isfinite(one) for one in found):
            raise self.wrong(f"clip.vision.{name} is {found!r:.80}, where there should be three numbers")
        if name == "image_std" and not all(one > 0 for one in found):
            raise self.wrong(f"clip.vision.image_std is {found!r:.80}, where no number may be 0")
        return tuple(map(float, found))

    def named(
        self,
        layer: str,
        parts: Mapping[str, str],
        others: Mapping[str, str],
        order: Mapping[str, Reorder] | None = None,
    ) -> dict[str, TensorInfo]:
        """The tensors by the names that transformers has for them. layer: what it puts in front of a layer's number.
        parts, others: names within a layer, and of whole tensors. order: of the rows of some parts. What has no name
        keeps its own, by which the family refuses it."""
        found: dict[str, TensorInfo] = {}
        for name, stored in self.tensors.items():
            place = LAYER.fullmatch(name)
            if place is not None and place["part"] in parts:
                key = f"{layer}{place['layer']}.{parts[place['part']]}.{place['kind']}"
                found[key] = tensor_info(stored, (order or {}).get(place["part"]))
            else:
                found[others.get(name, name)] = tensor_info(stored)
        return found
