"""Pictures beside the tables of benchmarks. matplotlib draws them, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

SIZE, DPI = (5.0, 3.4), 110  # inches of a panel
COLOURS = ("#3b6ea5", "#c8553d", "#6a994e", "#bc6c25")


Panels = dict[str, tuple[Sequence[str], Mapping[str, Sequence[float]]]]
"""By title: the names below the groups, and each series' values in the groups' order."""


def grouped_bars(path: Path, panels: Panels) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(2 * SIZE[0], rows * SIZE[1]), squeeze=False)
    for axis, (title, (groups, series)) in zip(axes.flat, panels.items(), strict=True):
        width = 0.8 / len(series)
        for number, ((name, values), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
            places = [group + width * (number - (len(series) - 1) / 2) for group in range(len(groups))]
            axis.bar(places, values, width, label=name, color=colour)
        axis.set_xticks(range(len(groups)), groups)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
