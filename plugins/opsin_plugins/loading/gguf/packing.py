"""As what a GGUF's blocks are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opsin_plugins.spec import CodeForm, Reorder

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
