"""Kernels compiled ahead of time for chips that are not here: they fit, spill nothing, and use the tensor cores."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import triton

from opsin_kernels.tools import launches as catalogue
from opsin_kernels.tools.compile_facts import TENSOR_CORES, Launch, facts
from opsin_kernels.tools.stand_in_driver import SHARED

BENCH = Path(__file__).parents[2] / "bench"
REPRESENTATIVE = {launch.name: launch for launch in catalogue.representative()}
ALL = {launch.name: launch for launch in catalogue.launches()}


def on_their_chips(launches: Mapping[str, Launch]) -> list[tuple[str, int]]:
    return [(name, chip) for name, launch in launches.items() for chip in launch.chips]


def check(launch: Launch, chip: int) -> list[str]:
    found = facts(launch, chip)
    assert not found.spilled, found
    assert found.shared <= SHARED[chip], found
    if launch.matrix:
        assert any(found.instructions[name] for name in TENSOR_CORES), "no tensor core instruction"
    if launch.background:
        assert found.instructions["LDGSTS"], "no load in the background"
    return table_row(launch, chip, found)


def table_row(launch: Launch, chip: int, found: object) -> list[str]:
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("kernel_facts", BENCH / "kernel_facts.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCH))
    return module.row(launch, chip, found)


@pytest.mark.parametrize(("name", "chip"), on_their_chips(REPRESENTATIVE))
def test_a_representative_launch_fits_its_chip_and_the_table_is_not_stale(name: str, chip: int) -> None:
    check_table(check(REPRESENTATIVE[name], chip))


def check_table(row: list[str]) -> None:
    text = (BENCH.parent / "docs" / "kernels.md").read_text()
    if f"Triton {triton.__version__}." in text:
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
        assert row in lines, "run: python bench/kernel_facts.py --write"


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "chip"), on_their_chips(ALL))
def test_every_launch_fits_its_chip(name: str, chip: int) -> None:
    check_table(check(ALL[name], chip))
