"""What drawing a token a row takes on a CPU: by the definition in torch, and by C.

python bench/drawing.py         8 rows of three vocabularies, plain, under a grammar's mask and filtered; half a minute
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import report
import torch
from stats import Spread
from tables import table
from torch import Tensor

from opsin_kernels.cpu import sampling as cpu
from opsin_kernels.sampling import SamplingRow, sample, sample_ref

ROWS, ROUNDS, WARM = 8, 15, 2
VOCABULARIES = (1_536, 49_152, 151_936)
REPEATS = {1_536: 100}  # calls of a round; of larger ones 3
PLAIN = SamplingRow(1.0, 0, 1.0, 0.0, 0.5)
KINDS: dict[str, SamplingRow] = {
    "greedy": SamplingRow(0.0, 0, 1.0, 0.0, 0.5),
    "plain": PLAIN,
    "masked": PLAIN,
    "top-k 50, top-p 0.9": SamplingRow(1.0, 50, 0.9, 0.0, 0.5),
    "top-p 0.9": SamplingRow(1.0, 0, 0.9, 0.0, 0.5),
    "top-p 0.9, flat": SamplingRow(1.0, 0, 0.9, 0.0, 0.5),
}


def logits_of(vocabulary: int, kind: str) -> Tensor:
    """A dozen likely tokens among many that are not; masked: one token of fifty may be drawn; flat: none is likely."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(ROWS, vocabulary, generator=generator)
    if "flat" not in kind:
        logits *= 2.5
        logits[:, :: vocabulary // 12] += 18
    if kind == "masked":
        logits[torch.rand(ROWS, vocabulary, generator=generator) > 0.02] = -torch.inf
    return logits


def microseconds(call: Callable[[], object], repeats: int) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        call()
    return 1e6 * (time.thread_time() - start) / repeats


def measured(vocabulary: int, kind: str) -> list[str]:
    logits = logits_of(vocabulary, kind)
    rows = [KINDS[kind]] * ROWS
    assert cpu.can_draw(logits), "there is no C on this machine"
    assert torch.equal(sample(logits, rows)[0], sample_ref(logits, rows)), "they draw different tokens"
    ways: tuple[Callable[[], object], ...] = (
        lambda: (sample_ref(logits, rows), logits.amax(-1)),
        lambda: sample(logits, rows),
    )
    repeats = REPEATS.get(vocabulary, 3)
    found = [[microseconds(way, repeats) for way in ways] for _ in range(WARM + ROUNDS)][WARM:]
    definition, c = zip(*found, strict=True)
    faster = Spread.of(a / b for a, b in found)
    return [f"{vocabulary:,}", kind, str(Spread.of(definition)), str(Spread.of(c)), str(faster)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = datetime.now(UTC)
    lines = [measured(vocabulary, kind) for vocabulary in VOCABULARIES for kind in KINDS]
    about = (
        f"µs of processor time to draw {ROWS} rows and to find the largest logit of each, by the definition in torch "
        f"and by C, on one thread: median (min-max) of {ROUNDS} interleaved rounds. A dozen tokens are likely, but in "
        "flat rows; masked: one token of fifty may be drawn."
    )
    shown = table(["vocabulary", "rows are", "definition, µs", "C, µs", "times as fast"], lines)
    report.write_page("drawing", "Drawing tokens", began, about, shown, given.out)


if __name__ == "__main__":
    main()
