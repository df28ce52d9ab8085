"""A table on a terminal; lines with tabs between their columns where something else reads."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from opsin_client.say import print_line
from opsin_client.visible import visible


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """head: names of the columns. numbers: those that stand at the right. Cells may be strangers' text."""
    console = Console()
    shown = [[visible(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        for row in (head, *shown):
            print_line("\t".join(row))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in shown:
        table.add_row(*map(Text, row))  # (brackets of a name are no markup)
    console.print(table)
