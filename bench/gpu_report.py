"""From rows to what is kept and read: gpu-<device>.json and .md, written again after every stage.

python bench/gpu_report.py ROWS OUT     writes them from a file of rows
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import rows
from gpu_plan import COPY, LAUNCH, NODE, PLANS, PRODUCT, Stage
from tables import table

UNITS = {"bytes_s": (1e12, "TB/s"), "flops_s": (1e12, "TFLOP/s")}
STEPS = ("row", "ms", "+-", "floor ms", "of the floor", "tokens/s", "host ms")
HIDDEN = {"at", "stage", "row", "ok", "again"}
CEILINGS = (COPY, PRODUCT, LAUNCH, NODE)


def planned(lines: Iterable[Mapping[str, Any]], plans: Mapping[str, tuple[Stage, ...]]) -> list[str]:
    """Every row that the commands so far had to bring, in order."""
    stages = [stage for one in lines if "command" in one for stage in plans[one["command"]]]
    return list(dict.fromkeys(row for stage in stages for row in stage.rows))


def line(found: Mapping[str, Any]) -> str:
    """A row as the terminal shows it; empty for lines that are none."""
    if "row" not in found:
        return ""
    if "::" in found["row"]:  # one of the many tests: those that failed are summed up at the end
        return "" if found["ok"] else f"FAILED {found['row'].rpartition('/')[2][:100]}"
    if not found["ok"]:
        return f"FAILED {found['row']}: {found['failure'][:300]}"
    return f"{found['row']}: {numbers(found)}"


def numbers(found: Mapping[str, Any]) -> str:
    shown = []
    for name, value in found.items():
        if name in HIDDEN or isinstance(value, dict | list) or (name == "seconds" and len(found) > 6):
            continue
        if name in UNITS and value:
            scale, unit = UNITS[name]
            shown.append(f"{value / scale:.3g} {unit}")
        elif isinstance(value, float):
            shown.append(f"{name} {value:.4g}")
        else:
            shown.append(f"{name} {value}")
    return ", ".join(shown)


def device(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the last row that named its device said."""
    found: dict[str, Any] = {"name": "unknown"}
    for one in lines:
        if isinstance(one.get("device"), dict):
            found = one["device"]
    return found


def document(lines: list[dict[str, Any]], wanted: list[str]) -> dict[str, Any]:
    done, failed = rows.succeeded(lines), rows.failures(lines)
    kept = {name: {k: v for k, v in one.items() if k not in ("device", "ok", "row")} for name, one in done.items()}
    tests = [name for name in kept if "::" in name]
    return {
        "what": "gpu",
        "schema": 1,
        "device": device(lines),
        "commands": [one for one in lines if "command" in one],
        "planned": wanted,
        "missing": [name for name in wanted if name not in done and name not in failed],
        "failed": {name: one["failure"] for name, one in failed.items()},
        "tests_passed": len(tests),
        "rows": {name: one for name, one in kept.items() if "::" not in name},
    }


def text(found: Mapping[str, Any]) -> str:
    """All of it."""
    done = found["rows"]
    parts = [f"# On a GPU: {found['device']['name']}", *short(found)]
    kernels = {n: r for n, r in done.items() if "of_ceiling" in r}
    if kernels:
        heads = ["operation", "ms", "+-", "GB/s", "TFLOP/s", "of the ceiling", "faster", "than", "error"]
        parts += ["## Operations", table(heads, [_operation(n, r) for n, r in kernels.items()])]
    others = [[n, numbers(r)] for n, r in done.items() if "floor_ms" not in r and n not in kernels]
    if others:
        parts += ["## Everything else", table(["row", "numbers"], others)]
    return "\n\n".join(parts) + "\n"


def short(found: Mapping[str, Any]) -> list[str]:
    """What the end of a terminal should show: what failed, the ceilings, the steps."""
    where, done, wanted = found["device"], found["rows"], found["planned"]
    about = ", ".join(f"{k} {v}" for k, v in where.items() if k != "name")
    count = f"{sum(r in done for r in wanted)} of {len(wanted)} planned rows"
    parts = [f"{about}. {count}; {found['tests_passed']} kernel tests passed."]
    bad = _bad(found)
    if bad:
        parts += ["## Failed or missing", table(["row", "why"], bad)]
    parts += [", ".join(f"{name}: {numbers(done[name])}" for name in CEILINGS if name in done)]
    steps = [_step(n, r) for n, r in done.items() if "floor_ms" in r]
    if steps:
        parts += ["## Steps of the engine", table(STEPS, steps)]
    return [part for part in parts if part]


def _bad(found: Mapping[str, Any]) -> list[list[str]]:
    """Rows that failed or are missing; tests that failed for one reason are one line."""
    lines, tests = [], defaultdict[str, list[str]](list)
    for name, why in found["failed"].items():
        if "::" in name:
            tests[why].append(name.rpartition("/")[2])
        else:
            lines.append([name, why[:160]])
    for why, names in tests.items():
        lines.append([names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""), why[:160]])
    return lines + [[name, "not reached"] for name in found["missing"]]


def _step(name: str, row: Mapping[str, Any]) -> list[str]:
    parts = row.get("parts_ms")
    host = "-" if parts is None else f"{sum(v for k, v in parts.items() if k != 'sample'):.2f}"
    return [
        name,
        f"{row['ms']:.3f}",
        f"{row['spread']:.3f}",
        f"{row['floor_ms']:.3f}",
        f"{100 * row['floor_ms'] / row['ms']:.0f} %",
        f"{row.get('tokens_s', 0):,.0f}",
        host,
    ]


def _operation(name: str, row: Mapping[str, Any]) -> list[str]:
    others = row["others_ms"]
    best = min(others, key=others.__getitem__, default=None)
    return [
        name,
        f"{row['ms']:.4f}",
        f"{row['spread']:.4f}",
        f"{row['gigabytes_s']:,.0f}",
        f"{row['teraflops']:,.1f}",
        f"{100 * row['of_ceiling']:.0f} %",
        "-" if best is None else f"{others[best] / row['ms']:.2f}x",
        best or "-",
        f"{row['error']:.1e}",
    ]


def write(path: Path, out: Path, plans: Mapping[str, tuple[Stage, ...]]) -> tuple[str, bool]:
    """Returns the short text, and whether every row that the commands so far had to bring is there."""
    lines = rows.read(path)
    found = document(lines, planned(lines, plans))
    stem = f"gpu-{found['device']['name']}"
    for old in out.glob("gpu-unknown.*"):
        old.unlink()
    (out / f"{stem}.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    (out / f"{stem}.md").write_text(text(found))
    return "\n\n".join(short(found)), not found["missing"] and not found["failed"]


def rates(path: Path) -> tuple[float, float] | None:
    """Bytes a second of a copy and operations a second of a product, if they have been measured."""
    done = rows.succeeded(rows.read(path))
    if COPY in done and PRODUCT in done:
        return done[COPY]["bytes_s"], done[PRODUCT]["flops_s"]
    return None


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), Path(sys.argv[2]), PLANS)[0])
