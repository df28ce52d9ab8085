"""What the report says is what transformers computes of both directories."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from opsin_plugins.loading.open_model import open_model
from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.quantize.compare import distance
from opsin_server.quantize.rows import sample_rows
from opsin_server.text.encode_prompt import PromptEncoder
from support import quantizing


def sampled(directory: Path) -> list[TrainingRow]:
    model = open_model(directory)
    encoder = PromptEncoder(model.files, model.architecture, model.spec)
    with sample_rows(encoder, lambda line: None) as rows:
        return [row for batch in rows.compared.batches for row in batch.rows]


def logits(model: nn.Module, rows: list[TrainingRow]) -> Tensor:
    """Of the tokens before those that are learned."""
    found = []
    for row in rows:
        said = model(input_ids=torch.from_numpy(row.ids).long()[None]).logits[0]
        found.append(said[torch.from_numpy(row.labels).nonzero()[:, 0] - 1])
    return torch.cat(found)


def kl(reference: Tensor, other: Tensor) -> float:
    return float(
        nn.functional.kl_div(other.log_softmax(-1), reference.log_softmax(-1), reduction="batchmean", log_target=True)
    )


def read(directory: Path) -> LlamaForCausalLM:
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return model


def weights(model: nn.Module, rows: list[TrainingRow]) -> dict[str, Tensor]:
    """All numbers of linears that transformers computes with, once it has run."""
    logits(model, rows[:1])  # (what is packed is unpacked at the first use)
    return {name: one.weight.detach().clone() for name, one in model.named_modules() if isinstance(one, nn.Linear)}


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["int4", "fp8"])
def test_numbers_are_those_of_transformers(base: Path, tmp_path: Path, scheme: str) -> None:
    done = quantizing.invoke(base, tmp_path / "out", "--scheme", scheme)
    assert done.exit_code == 0, done.output
    report, rows = quantizing.report(tmp_path / "out"), sampled(base)
    theirs, rounded = read(base), read(tmp_path / "out")
    reference, said = logits(theirs, rows), logits(rounded, rows)
    assert report["kl"] == pytest.approx(kl(reference, said), rel=1e-3)
    assert report["agreement"] == pytest.approx(
        float((reference.argmax(-1) == said.argmax(-1)).float().mean()), abs=2e-3
    )
    assert report["compared_on"]["answers"] == len(reference)
    assert report["compared_on"]["rows"] == len(rows)
    before, after = weights(theirs, rows), weights(rounded, rows)
    check_tensors(report, theirs, rows, before, after)
    check_layers(report, theirs, rows, reference, before, after)


def check_tensors(
    report: dict[str, Any],
    theirs: nn.Module,
    rows: list[TrainingRow],
    before: dict[str, Tensor],
    after: dict[str, Tensor],
) -> None:
    sums = {name: torch.zeros(2) for name in before}

    def hear(name: str) -> Any:
        def add(module: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
            error = given[0] @ (after[name] - before[name]).T
            sums[name] += torch.stack([error.square().sum(), (given[0] @ before[name].T).square().sum()])

        return add

    hooks = [m.register_forward_hook(hear(n)) for n, m in theirs.named_modules() if isinstance(m, nn.Linear)]
    logits(theirs, rows)
    for hook in hooks:
        hook.remove()
    assert len(report["tensors"]) == 14
    for tensor in report["tensors"]:
        name = tensor["name"].removesuffix(".weight")
        error = (after[name] - before[name]).norm() / before[name].norm()
        assert tensor["weight_error"] == pytest.approx(float(error), rel=1e-3)
        assert tensor["output_error"] == pytest.approx(float((sums[name][0] / sums[name][1]).sqrt()), rel=1e-3)
        assert tensor["bytes_before"] == before[name].nbytes


def check_layers(
    report: dict[str, Any],
    theirs: LlamaForCausalLM,
    rows: list[TrainingRow],
    reference: Tensor,
    before: dict[str, Tensor],
    after: dict[str, Tensor],
) -> None:
    assert [layer["name"] for layer in report["layers"]] == ["decoder.layers.0", "decoder.layers.1"]
    modules = dict(theirs.named_modules())
    for number, layer in enumerate(report["layers"]):
        mine = [name for name in before if f"layers.{number}." in name]
        for name in mine:
            modules[name].weight.copy_(after[name])
        assert layer["kl"] == pytest.approx(kl(reference, logits(theirs, rows)), rel=1e-2)
        for name in mine:
            modules[name].weight.copy_(before[name])
    assert sum(layer["bytes_after"] for layer in report["layers"]) == report["bytes_after"]


def test_a_distance_is_its_definition_and_no_number_stays_none() -> None:
    class Head:
        def logits(self, states: Tensor) -> Tensor:
            return states

    torch.manual_seed(0)
    one, other = torch.randn(300, 7), torch.randn(300, 7)
    head: Any = Head()
    found = distance(head, [one[:200], one[200:]], [other[:200], other[200:]])
    assert (found.tokens, found.kl) == (300, pytest.approx(kl(one, other), rel=1e-5))
    assert found.agreement == pytest.approx(float((one.argmax(-1) == other.argmax(-1)).float().mean()))
    assert (distance(head, [one], [one]).kl, distance(head, [one], [one]).agreement) == (0, 1)
    assert math.isnan(distance(head, [one], [other * torch.nan]).kl)


def test_the_page_stands_alone_and_the_picture_is_one(base: Path, tmp_path: Path) -> None:
    done = quantizing.invoke(base, tmp_path / "out", "--scheme", "int4")
    report = quantizing.report(tmp_path / "out")
    page = (tmp_path / "out" / "quantization-report.html").read_text()
    assert not re.search(r"(?:src|href)=|https?://|<script|@import|url\(", page)
    assert page.count("<rect ") == len(report["layers"])
    for tensor in report["tensors"]:
        assert tensor["name"] in page
    assert "prefers-color-scheme: dark" in page
    with Image.open(tmp_path / "out" / "quantization-report.png") as picture:
        assert picture.size == (1200, 640)
        assert len(picture.getcolors(1200 * 640) or ()) > 3
    worst = max(report["layers"], key=lambda layer: layer["kl"])
    assert f"layers that lose most, by KL divergence: {worst['name']} " in done.output
    assert f"KL divergence {report['kl']:.4f}" in done.output


def test_names_in_a_page_are_text(tmp_path: Path) -> None:
    quantizing.text_model(tmp_path / "<b>base&amp;")
    quantizing.invoke(tmp_path / "<b>base&amp;", tmp_path / "out", "--scheme", "int8")
    page = (tmp_path / "out" / "quantization-report.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;base&amp;amp;" in page


def test_layers_are_not_rounded_alone_where_that_takes_too_long(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsin_server.quantize.compare.LAYER_SECONDS", 0.0)
    done = quantizing.invoke(base, tmp_path / "out", "--scheme", "int4")
    report = quantizing.report(tmp_path / "out")
    assert report["kl"] > 0
    assert {layer["kl"] for layer in report["layers"]} == {None}
    assert report["layer_measure"] == "output_error"
    assert "layers that lose most, by error of outputs: decoder.layers." in done.output


def test_nothing_is_run_where_that_is_not_wanted(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin_server.quantize.loaded.free_bytes", lambda device: 0)
    done = quantizing.invoke(base, tmp_path / "out", "--scheme", "int4", "--no-compare")
    assert done.exit_code == 0
    assert "the models were not compared: --no-compare was given" in done.output
    report = quantizing.report(tmp_path / "out")
    assert (report["compared_on"], report["kl"], report["held_out"]) == (None, None, False)
    assert {tensor["output_error"] for tensor in report["tensors"]} == {None}


def test_a_model_that_cannot_be_run_is_written_and_the_report_says_why(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsin_server.quantize.loaded.free_bytes", lambda device: 1000)
    done = quantizing.invoke(base, tmp_path / "out", "--scheme", "int4")
    assert done.exit_code == 0
    assert "the models were not compared: running the unquantized model takes" in done.output
    report = quantizing.report(tmp_path / "out")
    assert (report["kl"], report["layer_measure"]) == (None, "weight_error")
    assert (tmp_path / "out" / "quantization-report.png").exists()
