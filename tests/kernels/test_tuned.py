"""Measured tiles are looked up by device, size and nearest query length; a device without a table gets safe ones."""

from __future__ import annotations

import json

import pytest

from opsin_kernels.gpu import tuned
from opsin_kernels.gpu.attention_shapes import shape_for

ENTRY = {"group": 6, "size": 128, "page": 16, "queries": 1, "block_m": 16, "tile": 128, "warps": 2, "stages": 3}
LONG = ENTRY | {"queries": 1024, "block_m": 128, "tile": 64, "warps": 8}
SHORT = LONG | {"queries": 64, "block_m": 64}


@pytest.fixture
def folder(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPSIN_TUNED", str(tmp_path))
    tuned.table.cache_clear()
    yield tmp_path
    tuned.table.cache_clear()


def test_a_table_gives_the_entry_with_the_nearest_query_length(folder) -> None:
    (folder / tuned.file_name("NVIDIA Some GPU")).write_text(json.dumps({"attention": [ENTRY, LONG, SHORT]}))

    def block_m(queries: int, size: int = 128) -> int:
        return shape_for(12, 2, size, 16, queries, device="NVIDIA Some GPU").block_m

    assert [block_m(n) for n in (1, 2, 64, 200, 300, 9000)] == [16, 64, 64, 64, 128, 128]
    assert shape_for(12, 2, 128, 16, 1, device="NVIDIA Some GPU").tile == 128
    assert shape_for(12, 2, 64, 16, 1, device="NVIDIA Some GPU") == shape_for(12, 2, 64, 16, 1)


def test_another_device_gets_what_fits_every_chip(folder) -> None:
    assert shape_for(12, 2, 128, 16, 1, device="NVIDIA Other") == shape_for(12, 2, 128, 16, 1)


@pytest.mark.parametrize("broken", [{"warps": "4"}, {"tile": True}, {"group": None}])
def test_a_table_with_anything_else_is_an_error(folder, broken: dict[str, object]) -> None:
    path = folder / tuned.file_name("x")
    path.write_text(json.dumps({"attention": [ENTRY | broken]}))
    with pytest.raises(ValueError, match="whole numbers"):
        tuned.table("x")


def test_a_file_name_says_device_and_version() -> None:
    assert tuned.file_name("NVIDIA H100 80GB HBM3").startswith("nvidia-h100-80gb-hbm3-triton-3.")
