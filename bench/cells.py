"""A cell is one system on one model with one setting at one number of streams; a sample is one measurement of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from processes import BenchError
from stats import covered, percentile
from systems import System


@dataclass(frozen=True)
class Sample:
    """Milliseconds and tokens. The closed loop of all streams is one sample; round pairs the systems' samples."""

    round: int
    requests: int
    new_tokens: int  # of one request
    prompt_tokens: float  # mean of a request
    wall_s: float
    tok_s: float  # generated tokens over the whole time, prefill and all
    decode_s: float  # in which any request was between its first and its last token
    decode_tok_s: float  # tokens after the first, over decode_s
    ttft_ms: float  # time to first token, median of the requests
    tpot_ms: float  # time per output token after the first, median of the requests
    gap_p99_ms: float  # between two pieces of text of one request
    client_cpu_s: float  # of the load generator; of `generate`, which is its own client: 0
    server_cpu_s: dict[str, float]  # first: the process that was started; rest: its children
    cpu_ms: float  # processor time of the system, all its processes, per generated token; more robust than a clock
    foreign_cpu: float  # processors used by others meanwhile: 1.0 is a busy core
    engine: dict[str, float] = field(default_factory=dict)  # Opsin: seconds in each part, and steps


@dataclass
class Cell:
    """Made when its first sample is there."""

    model: str
    system: str
    streams: int
    threads: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def speed(self) -> float:
        return statistics.median(s.tok_s for s in self.samples)

    @property
    def peak(self) -> float:
        """A busy machine only ever slows down."""
        return max(s.tok_s for s in self.samples)


def measure(system: System, requests: Path, streams: int, new_tokens: int, timeout: float, round_: int) -> Sample:
    """Thaws the system, measures, freezes it. Raises BenchError for an answer that is wrong or short."""
    system.child.thaw()
    engine, cpu = system.engine_seconds(), system.child.cpu_seconds()
    result = system.answer(requests, streams, new_tokens, timeout)
    after = system.child.cpu_seconds()
    parts = {k: v - engine.get(k, 0.0) for k, v in system.engine_seconds().items()}
    system.child.freeze()
    used = {pid: seconds - cpu.get(pid, 0.0) for pid, seconds in after.items()}
    first = used.pop(system.child.pid, 0.0)
    return sample(result, {"first": first, "rest": sum(used.values())}, parts, new_tokens, round_)


def sample(
    result: dict[str, Any], server_cpu: dict[str, float], engine: dict[str, float], new_tokens: int, round_: int
) -> Sample:
    answers = result["answers"]
    for a in answers:
        if a["error"]:
            raise BenchError(f"a request failed: {a['error']}")
        if a["completion_tokens"] != new_tokens or a["first"] is None:
            raise BenchError(f"{a['completion_tokens']} tokens came instead of {new_tokens}: {a['text'][:200]!r}")
    client = result["client_cpu_seconds"]
    wall = max(a["end"] for a in answers) - min(a["start"] for a in answers)
    foreign = result["machine_cpu_seconds"] - client - sum(server_cpu.values())
    decode = covered((a["first"], a["end"]) for a in answers)
    gaps = [1e3 * (b - x) for a in answers for x, b in pairwise(a["arrivals"])]
    return Sample(
        round=round_,
        requests=len(answers),
        new_tokens=new_tokens,
        prompt_tokens=statistics.mean(a["prompt_tokens"] for a in answers),
        wall_s=wall,
        tok_s=len(answers) * new_tokens / wall,
        decode_s=decode,
        decode_tok_s=len(answers) * (new_tokens - 1) / decode,
        ttft_ms=statistics.median(1e3 * (a["first"] - a["start"]) for a in answers),
        tpot_ms=statistics.median(1e3 * (a["end"] - a["first"]) / max(1, new_tokens - 1) for a in answers),
        gap_p99_ms=percentile(gaps, 99),
        client_cpu_s=client,
        server_cpu_s=server_cpu,
        cpu_ms=1e3 * sum(server_cpu.values()) / (len(answers) * new_tokens),
        foreign_cpu=max(0.0, foreign / result["wall_seconds"]),
        engine=engine,
    )
