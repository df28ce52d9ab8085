"""A report as one HTML page: a table and a chart, nothing fetched and nothing run."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import jinja2

from opsin_server.quantize.report import MEASURES, LayerReport, Report, shown, summary

WIDTH, HEIGHT = 960, 240  # of the chart, in its own units
GAP = 0.2  # of a bar's place, between it and the next


class Bar(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    title: str


def page_of(report: Report) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files(__package__).joinpath("report.html.jinja").read_text("utf-8"))
    return template.render(
        report=report,
        lines=summary(report),
        measure=MEASURES[report.layer_measure],
        bars=bars(report),
        top=shown(report.layer_measure, max(map(report.height, report.layers))),
        shown=shown,
        width=WIDTH,
        height=HEIGHT,
    )


def bars(report: Report, width: float = WIDTH, height: float = HEIGHT) -> list[Bar]:
    """One a layer, the highest as high as the chart."""
    most, place = max([*map(report.height, report.layers), 1e-30]), width / len(report.layers)
    found = []
    for number, layer in enumerate(report.layers):
        tall = height * report.height(layer) / most
        found.append(Bar(place * (number + GAP / 2), height - tall, place * (1 - GAP), tall, _title(report, layer)))
    return found


def _title(report: Report, layer: LayerReport) -> str:
    return f"{layer.name}: {shown(report.layer_measure, report.height(layer))}"
