"""Tiles that were measured to be fastest, by device and Triton version. Nothing is tuned while serving.

A table is a JSON file `<device>-triton-<version>.json`, in the directory that OPSIN_TUNED names or else in `tuned/`
beside this file, as `bench/tune.py` writes it: a list of entries, each with the launch it is for and the tile. A device
without a table gets tiles that fit every chip.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import triton

BESIDE = Path(__file__).parent / "tuned"
FIELDS = ("block_m", "tile", "warps", "stages")


def file_name(device: str) -> str:
    version = ".".join(triton.__version__.split(".")[:2])
    return f"{device.lower().replace(' ', '-')}-triton-{version}.json"


@cache
def table(device: str) -> tuple[Mapping[str, int], ...]:
    """The entries of a device, none without a table. Raises ValueError for a file that is no such table."""
    for folder in (os.environ.get("OPSIN_TUNED") or BESIDE, BESIDE):
        path = Path(folder, file_name(device))
        if path.is_file():
            entries = json.loads(path.read_text())["attention"]
            wanted = {"group", "size", "page", "queries", *FIELDS}
            if not all(wanted <= e.keys() and all(type(e[k]) is int for k in wanted) for e in entries):
                raise ValueError(f"{path}: an entry has not the whole numbers {', '.join(sorted(wanted))}")
            return tuple(entries)
    return ()


def attention_tile(device: str, group: int, size: int, page: int, queries: int) -> Mapping[str, int] | None:
    """block_m, tile, warps and stages for `group` heads a key head, head size, page (0: packed) and the longest query;
    of entries for other query lengths the one with the nearest. None without an entry."""
    entries = [e for e in table(device) if (e["group"], e["size"], e["page"]) == (group, size, page)]
    entries = [e for e in entries if (e["queries"] == 1) == (queries == 1)]  # decode has tiles of its own
    if not entries:
        return None
    return min(entries, key=lambda e: abs(math.log(e["queries"] / max(1, queries))))
