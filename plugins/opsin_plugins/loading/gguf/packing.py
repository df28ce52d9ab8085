"""As what a GGUF's blocks are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opsin_plugins.loading.gguf.container import StoredTensor
from opsin_plugins.spec import CodeForm, Reorder, TensorInfo

# Five and six bits are kept in eight: their blocks take a third more than in the file.
FORMS: Mapping[str, CodeForm] = {
    "Q4_0": CodeForm("int4", 32, offset=True, half=True),
    "Q4_1": CodeForm("int4", 32, offset=True, half=True),
    "Q4_K": CodeForm("int4", 32, offset=True),
    "Q5_0": CodeForm("int8", 32, half=True),
    "Q5_1": CodeForm("int8", 32, offset=True, half=True),
    "Q5_K": CodeForm("int8", 32, offset=True),
    "Q6_K": CodeForm("int8", 16),
    "Q8_0": CodeForm("int8", 32, half=True),
    "IQ4_NL": CodeForm("table4", 32, half=True),
}


@dataclass(frozen=True)
class GgufBlocks:
    """kind: of the blocks, as of container.KINDS. begin, nbytes: where they lie in the file. order: of rows, from the
    file's to the published one."""

    kind: str
    begin: int
    nbytes: int
    order: Reorder | None = None

    @property
    def form(self) -> CodeForm | None:
        return FORMS.get(self.kind)


@dataclass(frozen=True)
class Joined:
    """Tensors that are one where the model was published. axis: a new dimension along which they lie; None: their rows
    follow each other."""

    parts: tuple[TensorInfo, ...]
    axis: int | None = None

    @property
    def form(self) -> CodeForm | None:
        """Of rows, what all of them have."""
        forms = {None if part.packing is None else part.packing.form for part in self.parts}
        return forms.pop() if self.axis is None and len(forms) == 1 else None


def tensor_info(stored: StoredTensor, order: Reorder | None = None) -> TensorInfo:
    """order: of rows, from the file's to the published one."""
    return TensorInfo(
        stored.file, stored.kind, stored.shape, GgufBlocks(stored.kind, stored.begin, stored.nbytes, order)
    )


def joined_rows(parts: Sequence[TensorInfo]) -> TensorInfo:
    """As many rows as all have together. The parts are alike but for the number of their rows."""
    first, rows = parts[0], sum(part.shape[0] for part in parts)
    return TensorInfo(first.file, first.dtype, (rows, *first.shape[1:]), Joined(tuple(parts)))


def stacked(parts: Sequence[TensorInfo], axis: int) -> TensorInfo:
    """The parts are alike."""
    first = parts[0]
    shape = (*first.shape[:axis], len(parts), *first.shape[axis:])
    return TensorInfo(first.file, first.dtype, shape, Joined(tuple(parts), axis))
