"""What the compiler makes of every kernel for chips that are not here: the table in docs/kernels.md.

python bench/kernel_facts.py            prints it (a few minutes)
python bench/kernel_facts.py --write    puts it into docs/kernels.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import tables
import triton

from opsin_kernels.tools import launches as catalogue
from opsin_kernels.tools.compile_facts import Facts, Launch, facts
from opsin_kernels.tools.stand_in_driver import SHARED

PAGE = Path(__file__).resolve().parent.parent / "docs" / "kernels.md"
BEGIN, END = "<!-- python bench/kernel_facts.py --write -->", "<!-- end of the table -->"
TITLES = ["kernel", "sm", "registers", "stack B", "shared B", "of the chip's", "tensor cores", "background loads"]


def row(launch: Launch, chip: int, found: Facts) -> list[str]:
    share = f"{100 * found.shared / SHARED[chip]:.0f} %"
    loads = found.instructions["LDGSTS"]
    return [
        launch.name,
        *map(str, (chip, found.registers, found.stack, found.shared, share, found.tensor_cores, loads)),
    ]


def rows(launches: Iterable[Launch]) -> list[list[str]]:
    return [row(launch, chip, facts(launch, chip)) for launch in launches for chip in launch.chips]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    table = f"Triton {triton.__version__}.\n\n{tables.table(TITLES, rows(catalogue.launches()))}"
    print(table)
    if write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
