"""From samples to what is kept (JSON) and what is read (markdown, which is also what the terminal shows)."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import machine
from cells import Cell, Sample
from stats import Spread, short
from systems import GENERATE, OPSIN, SERVE
from tables import table

ROOT = Path(__file__).resolve().parent.parent
# (model, against, streams): tokens per second, Opsin's over the other's, that two cores should reach
TARGETS = {
    ("mini", SERVE, 1): 2.0,
    ("mini", SERVE, 8): 6.0,
    ("135m", SERVE, 1): 1.2,
    ("135m", SERVE, 8): 4.0,
    ("mini", GENERATE, 8): 1.5,
    ("135m", GENERATE, 8): 1.0,
}
SUMMED = ("tok_s", "decode_tok_s", "ttft_ms", "tpot_ms", "gap_p99_ms", "cpu_ms", "foreign_cpu")
SCHEDULER = ("schedule", "batch", "advance")
MESSAGES = ("door", "rest")
NOTES = """\
TTFT: time to first token. TPOT: time per output token after the first. tok/s: all generated tokens over all the time,
prefill in it. Decode tok/s: tokens after the first, over the time in which any request was decoding. Median (min to
max) over the rounds. Threads: torch threads and what a waiting one does; each system runs with what suited it best.
CPU: processor time of the system, all its processes, ms per generated token. Others: processor cores used meanwhile by
what is no part of the benchmark; 0 on a quiet machine."""
BUDGET_NOTES = """\
ms per decode step, as the client sees it. Scheduler: schedule, batch and advance. Messages, HTTP: what the engine's own
parts leave of the step. On the other core meanwhile: processor time of the API process and of the load generator."""


def default_path(name: str, quick: bool) -> Path:
    folder = ROOT / ("build/benchmarks" if quick else "docs/benchmarks")
    return folder / f"{name}-{machine.kind()}{'-quick' if quick else ''}.json"


def write(document: dict[str, Any], out: Path, text: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_finite(document), indent=1, allow_nan=False) + "\n")
    out.with_suffix(".md").write_text(text)
    print(text)
    print(f"written: {out} and {out.with_suffix('.md').name}")


def write_page(name: str, title: str, began: datetime, about_it: str, shown: str, out: Path | None) -> None:
    """A page without samples. out: a .md; None: where the pages of this machine are kept."""
    described = machine.describe()
    parts = [f"# {title}: {described['kind']}", about(header(name, began, described)), about_it, shown]
    text = "\n\n".join(parts) + "\n"
    (out or default_path(name, quick=False).with_suffix(".md")).write_text(text)
    print(text)


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def header(kind: str, began: datetime, described: dict[str, object]) -> dict[str, Any]:
    return {
        "schema": 1,
        "benchmark": kind,
        "began": began.isoformat(timespec="seconds"),
        "machine": described,
        "versions": machine.versions(),
    }


# ------------------------------------------------------------------------------------- bench/serve.py


def document(
    began: datetime,
    described: dict[str, object],
    workload: dict[str, Any],
    cells: Sequence[Cell],
    best: dict[tuple[str, str, int], str],
    answers: dict[str, Any],
) -> dict[str, Any]:
    """best: the thread setting of (model, system, streams); the others are kept as tries."""
    chosen = [c for c in cells if c.samples and best.get((c.model, c.system, c.streams)) == c.threads]
    tried = [c for c in cells if c.samples and c not in chosen]
    installed = [c for c in cells if c.samples and c.threads == "default"]
    return header("serve", began, described) | {
        "workload": workload,
        "cells": [cell_json(c) for c in chosen],
        "tried": [cell_json(c) for c in tried],
        "ratios": ratios(chosen),
        "as_installed": ratios([*(c for c in chosen if c.system == OPSIN), *installed]),
        "budget": [budget(c) for c in chosen if c.system == OPSIN],
        "same_answers": answers,
    }


def cell_json(cell: Cell) -> dict[str, Any]:
    summary = {name: asdict(Spread.of(getattr(s, name) for s in cell.samples)) for name in SUMMED}
    return {
        "model": cell.model,
        "system": cell.system,
        "streams": cell.streams,
        "threads": cell.threads,
        "summary": summary,
        "samples": [asdict(s) for s in cell.samples],
    }


def ratios(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Opsin over each other system, paired by round: tokens per second in all, decoding, and time to first token."""
    by_key = {(c.model, c.system, c.streams): c for c in cells}
    out = []
    for (model, system, streams), other in by_key.items():
        ours = by_key.get((model, OPSIN, streams))
        if system == OPSIN or ours is None:
            continue
        pairs = _pairs(ours.samples, other.samples)
        if not pairs:
            continue
        ratio = Spread.of(a.tok_s / b.tok_s for a, b in pairs)
        target = TARGETS.get((model, system, streams))
        out.append(
            {
                "model": model,
                "streams": streams,
                "against": system,
                "tok_s": asdict(ratio),
                "decode_tok_s": asdict(Spread.of(a.decode_tok_s / b.decode_tok_s for a, b in pairs)),
                "ttft": asdict(Spread.of(b.ttft_ms / a.ttft_ms for a, b in pairs)),
                "target": target,
                "met": None if target is None else ratio.median >= target,
            }
        )
    return out


def _pairs(ours: list[Sample], others: list[Sample]) -> list[tuple[Sample, Sample]]:
    theirs = {s.round: s for s in others}
    return [(s, theirs[s.round]) for s in ours if s.round in theirs]


def budget(cell: Cell) -> dict[str, Any]:
    """Where a decode step's milliseconds go: the median over the rounds of each part."""
    rounds = [step_parts(s) for s in cell.samples]
    names = {name for parts in rounds for name in parts}
    parts = {name: statistics.median(r.get(name, 0.0) for r in rounds) for name in sorted(names)}
    return {"model": cell.model, "streams": cell.streams, "threads": cell.threads, "ms": parts}


def step_parts(sample: Sample) -> dict[str, float]:
    """ms per decode step: "step" is all of it, "rest" what the engine does not account for."""
    seconds = sample.engine
    steps = seconds.get("decode.steps", 0.0)
    if not steps:
        return {}
    prefill = sum(v for k, v in seconds.items() if k.startswith("prefill.") and k != "prefill.steps")
    # While some requests decoded, others were prefilled; what fits into the time when none decoded was not among that.
    meanwhile = max(0.0, prefill - (sample.wall_s - sample.decode_s))
    own = {k: v for k, v in seconds.items() if k.startswith("decode.") and k != "decode.steps"}
    parts = {k.removeprefix("decode."): 1e3 * v / steps for k, v in own.items()}
    step = 1e3 * (sample.decode_s - meanwhile) / steps
    cpu = {"api_cpu": sample.server_cpu_s["first"], "client_cpu": sample.client_cpu_s}
    every = steps + seconds.get("prefill.steps", 0.0)
    return {"step": step, "rest": step - sum(parts.values())} | parts | {k: 1e3 * v / every for k, v in cpu.items()}


def serve_text(document: dict[str, Any]) -> str:
    work = document["workload"]
    parts = [
        f"# Serving: {document['machine']['kind']}",
        about(document),
        f"Each request: one fresh {work['picture']} picture, a text of {work['text_tokens']} tokens, "
        f"{work['new_tokens']} new tokens; closed loop, {work['precision']}, {work['repeats']} rounds."
        + (f" {work['skipped_for_time']} samples were left out for time." if work["skipped_for_time"] else ""),
        _cells_table(document["cells"]),
        NOTES,
        "## Ratios of tok/s",
        _ratios_table(document["ratios"]),
        "## Ratios of tok/s to `transformers serve` as it is installed",
        _ratios_table([row | {"target": None, "met": None} for row in document["as_installed"]]),
        "## Where a decode step of Opsin goes",
        _budget_table(document["budget"]),
        BUDGET_NOTES,
        "## The same answers?",
        _answers_table(document["same_answers"]),
    ]
    return "\n\n".join(parts) + "\n"


def about(document: dict[str, Any]) -> str:
    where, versions = document["machine"], document["versions"]
    return (
        f"{document['began'][:10]}, {where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB, "
        f"load before {where['load_before']}; " + ", ".join(f"{k} {v}" for k, v in versions.items()) + "."
    )


def _cells_table(cells: list[dict[str, Any]]) -> str:
    rows = []
    for c in sorted(cells, key=lambda c: (c["model"] != "mini", c["streams"])):
        summary = c["summary"]
        values = [str(Spread(**summary[name])) for name in ("ttft_ms", "tpot_ms", "decode_tok_s", "tok_s")]
        medians = [f"{summary[name]['median']:.2f}" for name in ("cpu_ms", "foreign_cpu")]
        rows.append([c["model"], c["streams"], c["system"], c["threads"], *values, *medians])
    titles = ["model", "streams", "system", "threads", "TTFT ms", "TPOT ms", "decode tok/s", "tok/s", "CPU", "others"]
    return table(titles, rows)


def _ratios_table(rows: list[dict[str, Any]]) -> str:
    verdict = {None: "", True: "met", False: "missed"}
    return table(
        ["model", "streams", "against", "tok/s", "target", "", "decode only", "first token"],
        [
            [
                r["model"],
                r["streams"],
                r["against"],
                str(Spread(**r["tok_s"])) + "x",
                "" if r["target"] is None else f"{r['target']:g}x",
                verdict[r["met"]],
                short(r["decode_tok_s"]["median"]) + "x",
                short(r["ttft"]["median"]) + "x",
            ]
            for r in sorted(rows, key=lambda r: (r["model"] != "mini", r["streams"]))
        ],
    )


def _budget_table(rows: list[dict[str, Any]]) -> str:
    titles = ["model", "streams", "step", "model", "sampler", "scheduler", "messages, HTTP", "API cpu", "client cpu"]
    columns = [("step",), ("model",), ("sample",), SCHEDULER, MESSAGES, ("api_cpu",), ("client_cpu",)]
    out = []
    for row in rows:
        values = [sum(row["ms"].get(name, 0.0) for name in names) for names in columns]
        out.append([row["model"], row["streams"], *(short(v) for v in values)])
    return table(titles, out)


def _answers_table(answers: dict[str, dict[str, Any]]) -> str:
    rows = [
        [model, system, "yes" if a["equal"] else f"the first {a['common_characters']} of {a['characters']} characters"]
        for model, systems in answers.items()
        for system, a in systems.items()
    ]
    return table(["model", "system", "as generate"], rows)
