"""What was written, and how far it is from what it was: of each tensor, of each layer and of the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace
from torch import Tensor

from opsin_server import __version__
from opsin_server.quantize.compare import Compared
from opsin_server.quantize.rows import Data, Rows

WORST = 3  # layers that the summary names
MEASURES = {"kl": "KL divergence", "output_error": "error of outputs", "weight_error": "error of weights"}


class TensorReport(msgspec.Struct, frozen=True):
    """weight_error: of its numbers, relative to their size. output_error: the same of what it makes of the data; None:
    no data reached it. calibrated: whether data said how it is rounded."""

    name: str
    layer: str
    bytes_before: int
    bytes_after: int
    weight_error: float
    calibrated: bool = False
    output_error: float | None = None


class LayerReport(msgspec.Struct, frozen=True):
    """Errors: means over its tensors. kl, agreement: where it alone is quantized; None: that was not measured."""

    name: str
    bytes_before: int
    bytes_after: int
    weight_error: float
    output_error: float | None
    kl: float | None
    agreement: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """calibrated_on: None: without data. held_out: whether what was compared on is something else. compared_on, kl,
    agreement: of the whole model; None: it was not run, for the reason `why_not`. layer_measure: the field by which
    layers can be compared. tensors_in_all: those that stay as they are, too."""

    opsin: str
    model: str
    scheme: str
    group_size: int | None
    calibrated_on: Data | None
    compared_on: Data | None
    held_out: bool
    why_not: str
    kl: float | None
    agreement: float | None
    bytes_before: int
    bytes_after: int
    weight_error: float
    tensors_in_all: int
    layer_measure: str
    layers: tuple[LayerReport, ...]
    tensors: tuple[TensorReport, ...]

    def height(self, layer: LayerReport) -> float:
        """Of a layer in a chart: 0 where no data reached it."""
        return float(getattr(layer, self.layer_measure) or 0)

    @property
    def worst(self) -> list[LayerReport]:
        """The layers that lose most."""
        return sorted(self.layers, key=self.height, reverse=True)[:WORST]


def report_of(tensors: Sequence[TensorReport], compared: Compared | str, rows: Rows | None, **about: Any) -> Report:
    """compared: or why nothing was. about: what else there is of a Report."""
    found = None if isinstance(compared, str) else compared
    if found is not None:
        tensors = [replace(one, output_error=_relative(found.outputs.get(one.name))) for one in tensors]
    layers = _layers(tensors, found)
    return Report(
        opsin=__version__,
        calibrated_on=None if rows is None or rows.calibrated is None else rows.calibrated.about,
        compared_on=None if rows is None or found is None else rows.compared.about,
        held_out=rows is not None and found is not None and rows.held_out,
        why_not=compared if isinstance(compared, str) else "",
        kl=None if found is None else found.whole.kl,
        agreement=None if found is None else found.whole.agreement,
        bytes_before=sum(one.bytes_before for one in tensors),
        bytes_after=sum(one.bytes_after for one in tensors),
        weight_error=sum(one.weight_error for one in tensors) / len(tensors),
        layer_measure=next(name for name in MEASURES if any(getattr(layer, name) is not None for layer in layers)),
        layers=tuple(layers),
        tensors=tuple(tensors),
        **about,
    )


def _relative(sums: Tensor | None) -> float | None:
    if sums is None:
        return None
    error, size = sums.tolist()
    return float((error / max(size, 1e-30)) ** 0.5)


def _layers(tensors: Sequence[TensorReport], compared: Compared | None) -> list[LayerReport]:
    groups: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.layer, []).append(tensor)
    return [_layer(name, group, compared) for name, group in groups.items()]


def _layer(name: str, tensors: Sequence[TensorReport], compared: Compared | None) -> LayerReport:
    alone = None if compared is None else compared.layers.get(name)
    return LayerReport(
        name,
        sum(one.bytes_before for one in tensors),
        sum(one.bytes_after for one in tensors),
        _mean([one.weight_error for one in tensors]) or 0.0,
        _mean([one.output_error for one in tensors if one.output_error is not None]),
        None if alone is None else alone.kl,
        None if alone is None else alone.agreement,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def as_json(report: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(report)).decode() + "\n"


def summary(report: Report) -> list[str]:
    """For the operator."""
    before, after = report.bytes_before / 2**20, report.bytes_after / 2**20
    sizes = f"{before:,.1f} MiB of them became {after:,.1f} MiB"
    worst = max(report.tensors, key=lambda one: one.weight_error)
    errors = f"{report.weight_error:.2%} in the mean, at most {worst.weight_error:.2%} ({worst.name})"
    lines = [
        f"{len(report.tensors):,} of {report.tensors_in_all:,} tensors in {report.scheme}, {sizes}",
        f"error of a weight, relative to its size: {errors}",
    ]
    if report.calibrated_on is not None:
        calibrated = sum(one.calibrated for one in report.tensors)
        lines.append(f"calibrated on {_data(report.calibrated_on)}: {calibrated:,} tensors")
    if report.compared_on is None or report.kl is None:
        lines.append(f"the models were not compared: {report.why_not}")
    else:
        held = " that it was not calibrated on" if report.calibrated_on is not None and report.held_out else ""
        lines.append(f"KL divergence {report.kl:.4f}, the same next token {report.agreement:.1%} of the time")
        lines.append(f"  on {_data(report.compared_on)}{held}")
    said = ", ".join(f"{layer.name} ({shown(report.layer_measure, report.height(layer))})" for layer in report.worst)
    lines.append(f"layers that lose most, by {MEASURES[report.layer_measure]}: {said}")
    return lines


def shown(measure: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.5f}" if measure == "kl" else f"{value:.2%}"


def _data(data: Data) -> str:
    pictures = f", {data.pictures:,} pictures" if data.pictures else ""
    return f"{data.name}: {data.rows:,} row{'s' * (data.rows != 1)}{pictures}, {data.answers:,} tokens of answers"
