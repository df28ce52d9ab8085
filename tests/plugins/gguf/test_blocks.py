"""Blocks of GGUF tensors, against the reading of the `gguf` package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from opsin_plugins.blocks.unpack_gguf import READERS, unpack_blocks
from opsin_plugins.loading.gguf.container import KINDS
from opsin_plugins.loading.gguf.packing import FORMS, GgufBlocks
from support.gguf_files import random_blocks

HALVES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
SIZES = {name: (numbers, size) for name, numbers, size in KINDS.values()}


@pytest.mark.parametrize("kind", READERS)
def test_a_block_means_what_the_package_reads_in_it(tmp_path: Path, kind: str) -> None:
    numbers, size = SIZES[kind]
    blocks = random_blocks(Kind[kind], 7 * 3, size, HALVES.get(kind, [0]))
    file = tmp_path / "blocks"
    file.write_bytes(b"before" + blocks.tobytes())
    found = unpack_blocks(file, GgufBlocks(kind, 6, blocks.nbytes), (7, 3 * numbers))
    assert not isinstance(found, np.ndarray)
    assert found.form == FORMS[kind]  # type: ignore[union-attr]
    theirs = quants.dequantize(blocks.reshape(7, -1), Kind[kind])
    assert np.array_equal(found.dequantized().numpy(), theirs)  # type: ignore[union-attr]


def test_every_kind_that_is_named_is_read() -> None:
    assert {name for name, *_ in KINDS.values()} == {*READERS, "F32", "F16", "BF16"}
    assert READERS.keys() == FORMS.keys()
