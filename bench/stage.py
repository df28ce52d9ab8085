"""What the scripts of bench/gpu.sh share: their flags, their file of rows, the time that is left."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import gpu_report
from device import Device
from rows import Rows

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 5.0  # with a rehearsal: a busy processor takes its time


@dataclass(frozen=True)
class Given:
    """args: what the script's own flags say. end: of time.time(), when the stage must have ended."""

    args: argparse.Namespace
    device: Device
    rows: Rows
    end: float

    @property
    def left(self) -> float:
        return self.end - time.time()

    def rates(self) -> tuple[float, float]:
        """Bytes a second of a copy and operations a second of a product, as the ceilings' stage measured them."""
        return gpu_report.rates(self.rows.path) or self.device.ceilings()


def given(parser: argparse.ArgumentParser, stage: str, minutes: float) -> Given:
    """Ends the process where there is neither a GPU nor --tiny."""
    parser.add_argument("--tiny", action="store_true", help="small sizes, also on a CPU")
    parser.add_argument("--rows", type=Path, help="the file of rows, which is added to")
    args = parser.parse_args()
    device = Device(args.tiny)
    if not device.cuda and not args.tiny:
        parser.exit(2, "there is no CUDA device; --tiny shows that this script works\n")
    path = args.rows or ROOT / "build" / "benchmarks" / f"{stage}-{device.name}.jsonl"
    end = float(os.environ.get("OPSIN_BENCH_END") or time.time() + 60 * minutes)
    return Given(args, device, Rows(path, stage, device.broken, PATIENCE if args.tiny else 1.0), end)
