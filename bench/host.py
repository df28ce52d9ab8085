"""What a decode step costs the host (schedule, batch, commit, the message), with a model that takes no time.

python bench/host.py            batch sizes 1, 8, 64, 256; half a minute
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import report
import torch

from opsin_plugins.spec import RopeSpec
from opsin_server.engine.engine import Engine
from opsin_server.engine.scheduling.encoder_cache import EncoderCache
from opsin_server.engine.scheduling.kv_blocks import BlockManager
from opsin_server.engine.scheduling.plan import Limits
from opsin_server.engine.scheduling.scheduler import Scheduler
from opsin_server.ipc.messages import Arrays, Outputs, Sampling, Submit, pack

SIZES = (1, 8, 64, 256)
PROMPT, STEPS, WARM, ROUNDS, VOCABULARY = 100, 200, 20, 5, 16
PARTS = ("schedule", "batch", "advance")
GREEDY = Sampling(temperature=0.0)


class StubRunner:
    """Draws token 1 for every row."""

    device = torch.device("cpu")
    drawn = None

    def __init__(self) -> None:
        decoder = SimpleNamespace(vocab=VOCABULARY, embeddings=VOCABULARY, rope=RopeSpec(1e4, (16, 24, 24)))
        spec = SimpleNamespace(decoder=decoder, cross=None, vision=None)
        self.model, self._logits = SimpleNamespace(spec=spec), torch.zeros(max(SIZES), VOCABULARY)
        self._logits[:, 1] = 1

    def run(self, batch: Any) -> torch.Tensor:
        return self._logits[: len(batch.sampled)]

    def encoder_bytes(self) -> int:
        return 0


def round_of(size: int) -> dict[str, float]:
    """Microseconds a step, by part; messages: the outputs and the engine's count, packed."""
    blocks = BlockManager(size * 64, 16)
    limits = Limits(size, 1024, max(1024, size), 4096)
    engine = Engine(Scheduler(limits, blocks, EncoderCache(0, 16)), StubRunner())  # type: ignore[arg-type]
    for name in range(size):
        ids = np.arange(PROMPT, dtype=np.int32) % VOCABULARY
        ids[0] = name % VOCABULARY
        message = Submit(f"req_{name:024x}", GREEDY, STEPS + WARM + 200, (), 0, 3, salt=name.to_bytes(2, "little"))
        engine.submit(message, Arrays(ids, np.broadcast_to(ids, (3, PROMPT)), ()))
    while len(engine.scheduler.running) < size or any(s.remaining > 1 for s in engine.scheduler.running):
        engine.step()
    for _ in range(WARM):
        engine.step()
    before, packing = dict(engine.stats().seconds), 0.0
    for _ in range(STEPS):
        outputs = engine.step()
        start = time.perf_counter()
        pack(Outputs(tuple(outputs), engine.stats()))
        packing += time.perf_counter() - start
    after = engine.stats().seconds
    found = {part: (after[f"decode.{part}"] - before.get(f"decode.{part}", 0.0)) / STEPS * 1e6 for part in PARTS}
    found["messages"] = packing / STEPS * 1e6
    return {**found, "host": sum(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    columns, lines = (*PARTS, "messages", "host"), []
    for size in SIZES:
        rounds = [round_of(size) for _ in range(ROUNDS)]
        cells = [f"{statistics.median(values):.0f}" for values in ([r[c] for r in rounds] for c in columns)]
        spread = f"{min(r['host'] for r in rounds):.0f}-{max(r['host'] for r in rounds):.0f}"
        lines.append([str(size), *cells, spread])
    about = (
        "µs of a decode step on the host, without the model and the draw: median of "
        f"{ROUNDS} rounds of {STEPS} steps, {PROMPT} prompt tokens each; (min-max) of all of it."
    )
    report.write_page(
        "host", "Host time", datetime.now(UTC), about, report.table(["sequences", *columns, "spread"], lines), given.out
    )


if __name__ == "__main__":
    main()
