"""Before steps are timed: small models on the device, launched anew and recorded, give the definitions' own tokens and
log-probabilities."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from opsin_kernels import dispatch
from opsin_server.engine.engine import Engine
from opsin_server.ipc.messages import Sampling

MIX = ((40, 64), (3, 0), (150, 0), (20, 64), (1, 0))  # tokens, edge of the picture
COUNT = 12
GREEDY = Sampling(temperature=0.0, top_logprobs=0)
DRAWN = Sampling(temperature=0.8, top_p=0.9, top_k=30, frequency_penalty=0.5, seed=7, top_logprobs=0)
TOLERANCE = 3e-5  # of a token's log-probability, in float32


@contextmanager
def definitions() -> Iterator[None]:
    """Within it the CPU runs plain torch, also where kernels are interpreted."""
    before, dispatch.INTERPRETED = dispatch.INTERPRETED, False
    try:
        yield
    finally:
        dispatch.INTERPRETED = before


def answers(engine: Engine, requests: list) -> dict[str, list[tuple[int, float]]]:
    """Tokens of each request with their log-probabilities; some join while others are being answered."""
    found: dict[str, list[tuple[int, float]]] = {}
    waiting, share = list(requests), len(requests) // 2 + 1
    while waiting or engine.busy:
        for message, arrays in waiting[:share]:
            engine.submit(message, arrays)
        del waiting[:share]
        for _ in range(3):
            for output in engine.step():
                assert output.error is None, output.error
                pairs = zip(output.ids, (known.chosen for known in output.logprobs), strict=True)
                found.setdefault(output.request_id, []).extend(pairs)
    return found


def differs(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return any(a[0] != b[0] or abs(a[1] - b[1]) > TOLERANCE for a, b in pairs)


def check(bench_of: object, names: tuple[str, ...], cuda: bool) -> bool:
    """bench_of(name, device, dtype): a Bench of a small model. Says what differs."""
    right = True
    for name in names:
        plain = bench_of(name, torch.device("cpu"), torch.float32)
        requests = [
            plain.request(text, (edge,) if edge else (), COUNT, DRAWN if i % 2 else GREEDY)
            for i, (text, edge) in enumerate(MIX)
        ]
        with definitions():
            wanted = answers(plain.engine(8, 1200, recorded=False), requests)
        placed = bench_of(name, torch.device("cuda" if cuda else "cpu"), torch.float32)
        placed.model.load_state_dict(plain.model.state_dict())
        for recorded in (False, True) if cuda else (False,):
            found = answers(placed.engine(8, 1200, recorded), requests)
            differing = sorted(key for key in wanted if differs(found[key], wanted[key]))
            right = right and not differing
            what = "recorded steps" if recorded else "steps"
            verdict = f"{len(differing)} of {len(wanted)} answers differ: {differing}" if differing else "equal"
            print(f"{name}, small, {what}: {verdict}", file=sys.stderr, flush=True)
    return right
