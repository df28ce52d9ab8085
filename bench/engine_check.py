"""Small models on the device, in float32, launched anew and captured, give the definitions' own tokens and
log-probabilities.

    python bench/engine_check.py            on a CUDA device
    python bench/engine_check.py --tiny     anywhere
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from device import Device
from engine import Wrong, stepped
from gpu_plan import CHECKED, check_row
from random_model import RandomModel
from stage import given

from opsin_kernels import dispatch
from opsin_server.config import KvDType
from opsin_server.engine.engine import Engine
from opsin_server.ipc.messages import Sampling

MIX = ((40, 64), (3, 0), (150, 0), (20, 64), (1, 0))  # tokens, edge of the picture
COUNT, SEQUENCES, CONTEXT = 12, 8, 1200
SHORT: dict[str, Any] = {"mix": MIX[:3], "count": 4, "sequences": 2, "context": 200}  # for a rehearsal
GREEDY = Sampling(temperature=0.0, top_logprobs=0)
DRAWN = Sampling(temperature=0.8, top_p=0.9, top_k=30, frequency_penalty=0.5, seed=7, top_logprobs=0)
AHEAD = Sampling(temperature=0.8, top_p=0.9, top_k=30, seed=7)  # what needs no token on the host
TOLERANCE = 3e-4  # of a token's log-probability, in float32; TF32 or bf16 products would be off by 3e-3 and more


@contextmanager
def definitions() -> Iterator[None]:
    """Within it the CPU runs plain torch, also where kernels are interpreted."""
    before, dispatch.INTERPRETED = dispatch.INTERPRETED, False
    try:
        yield
    finally:
        dispatch.INTERPRETED = before


def answers(engine: Engine, requests: list) -> dict[str, list[tuple[int, float]]]:
    """Tokens of each request with their log-probabilities, 0 where none were asked for; some join while others are
    being answered."""
    found: dict[str, list[tuple[int, float]]] = {}
    waiting, share = list(requests), len(requests) // 2 + 1
    while waiting or engine.busy:
        for message, arrays in waiting[:share]:
            engine.submit(message, arrays)
        del waiting[:share]
        for _ in range(3):
            for output in stepped(engine):
                known = [one.chosen for one in output.logprobs] or [0.0] * len(output.ids)
                pairs = zip(output.ids, known, strict=True)
                found.setdefault(output.request_id, []).extend(pairs)
    return found


def largest(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> float:
    """The largest difference of a log-probability; infinite where tokens differ."""
    pairs = zip(ours, theirs, strict=True)
    return max((abs(a[1] - b[1]) if a[0] == b[0] else math.inf for a, b in pairs), default=0.0)


def compared(
    name: str,
    device: Device,
    captured: bool,
    mix: Sequence[tuple[int, int]] = MIX,
    count: int = COUNT,
    sequences: int = SEQUENCES,
    context: int = CONTEXT,
    form: str = "dense",
    kv_dtype: KvDType = "auto",
) -> dict[str, float]:
    """Raises Wrong where answers differ. mix: tokens of each prompt, and the edge of its picture; sequences: how many
    are answered at once; form, kv_dtype: of the weights, of keys and values. All are asked twice: with log
    probabilities, and so that steps run ahead."""
    plain = RandomModel(name, torch.device("cpu"), torch.float32, "tiny", form, kv_dtype)

    def requests(*kinds: Sampling) -> list:
        return [
            plain.request(text, (edge,) if edge else (), count, kinds[i % len(kinds)])
            for i, (text, edge) in enumerate(mix)
        ]

    rounds = [requests(GREEDY, DRAWN), requests(AHEAD)]
    with definitions():
        defined = plain.engine(sequences, context, captured=False)
        wanted = [answers(defined, asked) for asked in rounds]
    placed = RandomModel(name, device.device, torch.float32, "tiny", form, kv_dtype)
    placed.model.load_state_dict(plain.model.state_dict())
    engine = placed.engine(sequences, context, captured)
    if captured and engine.runner.graphs is None:
        raise Wrong("decode steps could not be captured (the traceback is above)")
    engine.run_ahead = True  # on a CPU, too
    found = [answers(engine, asked) for asked in rounds]
    if not engine.steps_ahead:
        raise Wrong("no step ran ahead of the results of the one before it")
    errors = {key: largest(f[key], w[key]) for f, w in zip(found, wanted, strict=True) for key in w}
    differing = {key: error for key, error in errors.items() if not error <= TOLERANCE}
    if differing:
        raise Wrong(f"{len(differing)} of {len(errors)} answers differ, by {differing}")
    return {"answers": len(errors), "largest_difference": max(errors.values())}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run = given(parser, "engine-check", 2)
    rows = {check_row(name, captured): (name, captured) for name in CHECKED for captured in (False, True)}
    for row in run.rows.todo(rows):
        with run.rows.row(row) as values:
            name, captured = rows[row]
            how = SHORT if run.device.tiny else {}
            values |= compared(name, run.device, captured, **how)


if __name__ == "__main__":
    main()
