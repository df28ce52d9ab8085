"""What bench/gpu.sh is to bring in its minutes, and that they are enough."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import gpu_plan
import pytest
from gpu_plan import FIRST, FORMS, LIMITS, LLAMA, PLANS, QWEN_2B, QWEN_7B, SECOND, decode_row, prefill_row

ROOT = Path(__file__).resolve().parents[2]
WANTED = {QWEN_2B: (1, 8, 32, 128), QWEN_7B: (1, 32), LLAMA: (1, 8)}
THERE = {"numpy", "safetensors", "tokenizers", "torch", "triton"}  # in every image that is made for a GPU


def rows(stages: tuple[gpu_plan.Stage, ...]) -> list[str]:
    return [row for stage in stages for row in stage.rows]


@pytest.mark.parametrize("model", WANTED)
def test_decode_steps_of_every_size_are_planned_recorded_and_eager(model: str) -> None:
    wanted = [decode_row(model, batch, form) for batch in WANTED[model] for form in FORMS]
    assert set(wanted) <= set(rows(FIRST))
    assert [row for row in rows(FIRST) if row in wanted] == wanted, "the smallest batch first, captured before eager"


def test_correctness_comes_first_then_ceilings_then_steps() -> None:
    order = rows(FIRST)
    wanted = [gpu_plan.TESTS, gpu_plan.COPY, gpu_plan.PRODUCT, prefill_row(QWEN_2B), decode_row(QWEN_2B, 1)]
    places = [order.index(row) for row in [*wanted, decode_row(QWEN_7B, 1), decode_row(LLAMA, 1)]]
    assert places == sorted(places)
    assert len(order) == len(set(order)), "a row has one name"


def test_the_minutes_are_enough() -> None:
    assert LIMITS == {"first": 7 * 60, "second": 4 * 60}
    for name, stages in PLANS.items():
        ends = gpu_plan.deadlines(stages)
        assert ends == sorted(ends)
        assert ends[-1] + gpu_plan.END <= LIMITS[name]
        assert ends[-1] == gpu_plan.SETUP + sum(stage.seconds for stage in stages)


def test_a_second_command_can_bring_whatever_the_first_missed_and_tiles() -> None:
    compiled = {gpu_plan.shallow_row(model) for model in WANTED}  # (only spares the first command's steps a compiler)
    assert set(rows(FIRST)) - compiled == set(rows(SECOND)) - {gpu_plan.TILES}


def test_all_kernels_that_are_tested_interpreted_are_tested_on_the_device() -> None:
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests/kernels/interpreted").glob("test_*.py")}
    about_the_cpu = {"whole_models", "graphs", "interpreter", "device"}  # engine_check.py compares whole models
    assert set(gpu_plan.NATIVE) == files - about_the_cpu


def test_every_script_of_the_plan_is_there() -> None:
    scripts = [c.arguments[0] for s in (*FIRST, *SECOND) for c in s.commands if not c.module]
    assert all((ROOT / "bench" / name).is_file() for name in scripts)


def test_wheels_are_carried_for_all_that_may_be_missing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[><=;\[ ]", line)[0] for line in project["dependencies"]}
    lines = [line for line in (ROOT / "bench/wheels.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in lines), "pinned, so that two runs are alike"
    assert needed - THERE <= {line.partition("==")[0] for line in lines}


def test_what_watches_the_clock_needs_nothing_but_python() -> None:
    """So that a package that is missing costs the rows that need it, and not the whole command."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import gpu, gpu_report, gpu_plan, rows, entry_points"
    line = [sys.executable, "-I", "-S", "-c", code, str(ROOT / "bench")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
