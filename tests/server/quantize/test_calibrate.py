"""`opsin quantize --calibrate`: nearer on data, read by transformers as here, bounded, and refused in sentences."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.loading.open_model import open_model
from opsin_server.embedded import MODEL
from opsin_server.quantize import calibrate, loaded
from opsin_server.quantize.compensate import Moments
from support import oracle, quantizing


@torch.no_grad()
def test_a_calibrated_model_is_nearer_and_transformers_reads_it(base: Path, tmp_path: Path) -> None:
    rows = quantizing.texts(tmp_path / "rows.jsonl", 40)
    plain = quantizing.invoke(base, tmp_path / "plain", "--scheme", "int4")
    assert plain.exit_code == 0
    done = quantizing.invoke(base, tmp_path / "out", "--scheme", "int4", "--calibrate", rows)
    assert done.exit_code == 0, done.output
    report = quantizing.report(tmp_path / "out")
    assert report["calibrated_on"]["rows"] == 35
    assert (report["compared_on"]["rows"], report["held_out"]) == (5, True)
    assert all(tensor["calibrated"] for tensor in report["tensors"])
    assert "on rows.jsonl: 5 rows" in done.output
    ours = oracle.with_declared(tmp_path / "out")
    asked = oracle.prompt(ours, list(range(5, 25)), [])
    (mine,) = oracle.our_logits(ours, [asked])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    theirs = oracle.their_logits(again, ours, asked)
    assert (mine - theirs).abs().max() < 1e-3 * theirs.abs().max()
    errors = {one["name"]: one["weight_error"] for one in quantizing.report(tmp_path / "plain")["tensors"]}
    assert all(one["weight_error"] > errors[one["name"]] for one in report["tensors"])  # what it pays on the weights


@torch.no_grad()
def test_pictures_calibrate_the_tower_as_well(tmp_path: Path) -> None:
    rows = quantizing.pictures(tmp_path / "rows.jsonl", 12)
    given = (MODEL, tmp_path / "out", "--scheme", "int4", "--quantize-vision", "--calibrate", rows)
    done = quantizing.invoke(*given)
    assert done.exit_code == 0, done.output
    report = quantizing.report(tmp_path / "out")
    assert report["calibrated_on"]["pictures"] == 11
    layers = {tensor["layer"] for tensor in report["tensors"] if tensor["calibrated"]}
    assert {"vision.layers.0", "projector", "decoder.layers.4"} <= layers
    assert all(layer["kl"] is not None for layer in report["layers"])
    ours = oracle.with_declared(tmp_path / "out")
    asked = oracle.prompt(ours, [3, ours.spec.image_token, 4, 20, 21], [oracle.picture(0, 64, 64)])
    (mine,) = oracle.our_logits(ours, [asked])
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    theirs = oracle.their_logits(again, ours, asked)
    assert (mine - theirs).abs().max() < 1e-3 * theirs.abs().max()


def test_what_no_row_reaches_is_rounded_without_data(tmp_path: Path) -> None:
    """A tower, by rows of text."""
    rows = quantizing.texts(tmp_path / "rows.jsonl", 3)
    given = (MODEL, tmp_path / "out", "--scheme", "int4", "--quantize-vision", "--calibrate", rows)
    assert quantizing.invoke(*given).exit_code == 0
    report = quantizing.report(tmp_path / "out")
    known = {tensor["name"]: tensor["calibrated"] for tensor in report["tensors"]}
    assert all(calibrated == ("visual" not in name) for name, calibrated in known.items())
    assert {one["output_error"] is None for one in report["tensors"] if "visual" in one["name"]} == {True}
    assert not report["held_out"]  # three rows are too few to hold any out


def test_moments_are_there_one_at_a_time_where_there_is_no_room(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, most = quantizing.texts(tmp_path / "rows.jsonl", 4), 0
    monkeypatch.setattr(calibrate, "MOMENTS_BYTES", 1)
    made = Moments.__init__

    def counted(self: Moments, inputs: int) -> None:
        nonlocal most
        made(self, inputs)
        gc.collect()
        most = max(most, sum(isinstance(one, Moments) for one in gc.get_objects()))

    monkeypatch.setattr(Moments, "__init__", counted)
    assert quantizing.invoke(base, tmp_path / "out", "--scheme", "int4", "--calibrate", rows).exit_code == 0
    assert most == 1
    assert all(tensor["calibrated"] for tensor in quantizing.report(tmp_path / "out")["tensors"])


def test_rows_and_tokens_are_bounded(base: Path, tmp_path: Path) -> None:
    rows = quantizing.texts(tmp_path / "rows.jsonl", 30)
    with rows.open("a") as file:
        file.write("this is not read\n")
    given = (base, tmp_path / "out", "--scheme", "int4", "--calibrate", rows)
    assert quantizing.invoke(*given, "--calibration-rows", 16).exit_code == 0
    report = quantizing.report(tmp_path / "out")
    assert report["calibrated_on"]["rows"] + report["compared_on"]["rows"] == 16
    given = (base, tmp_path / "few", "--scheme", "int4", "--calibrate", rows)
    assert quantizing.invoke(*given, "--calibration-rows", 16, "--calibration-tokens", 200).exit_code == 0
    assert 0 < quantizing.report(tmp_path / "few")["calibrated_on"]["tokens"] <= 200


def refusal(base: Path, file: Path) -> str:
    out = file.parent / "out"
    done = quantizing.invoke(base, out, "--scheme", "int4", "--calibrate", file)
    assert done.exit_code != 0
    assert not out.exists()
    assert done.stdout == ""
    return str(done.exception)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"messages": [\n', "line 1: not valid JSON"),
        ("PK\x03\x04", "the file is a ZIP file, not JSON lines in UTF-8"),
        ("[1, 2]", "the file is one JSON array"),
        ("", "the calibration file has 0 rows to calibrate with; at least 1 are needed"),
        ("\n\n", "the calibration file has 0 rows to calibrate with; at least 1 are needed"),
        ('\n\n{"text": "x"}\n', "line 3: "),
        ('{"messages": [{"role": "user", "content": "no answer"}]}', "line 1: "),
    ],
)
def test_files_that_are_no_rows(base: Path, tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    told = refusal(base, file)
    assert told.startswith(f"{file}: the ")
    assert said in told


def test_pictures_for_a_model_of_text(base: Path, tmp_path: Path) -> None:
    assert "line 1: messages[0].content[0].image_url: this model has no vision: it takes text only" in refusal(
        base, quantizing.pictures(tmp_path / "rows.jsonl", 2)
    )


def test_a_row_that_is_too_long(base: Path, tmp_path: Path) -> None:
    rows = [json.loads(line)["messages"] for line in quantizing.texts(tmp_path / "short", 2).read_text().splitlines()]
    long = json.loads(quantizing.texts(tmp_path / "long", 1, words=400).read_text())["messages"]
    told = refusal(base, quantizing.written(tmp_path / "rows.jsonl", [*rows, long]))
    assert "line 3: the row has " in told
    assert "tokens; the limit is 512" in told


def test_too_little_memory(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin_server.quantize.loaded.free_bytes", lambda device: 1000)
    assert "bytes of memory, and 1,000 are free" in refusal(base, quantizing.texts(tmp_path / "rows.jsonl", 2))


def test_where_float32_does_not_fit_the_model_runs_in_16_bits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = quantizing.texts(tmp_path / "rows.jsonl", 10)
    numbers = sum(math.prod(info.shape) for info in open_model(base).files.tensors.values())
    seen: list[torch.dtype] = []

    def built(*given: Any, dtype: torch.dtype, **more: Any) -> Model:
        seen.append(dtype)
        return build_model(*given, dtype=dtype, **more)

    monkeypatch.setattr("opsin_server.quantize.loaded.build_model", built)
    for folder, each in (("wide", 4), ("narrow", 2)):
        free = numbers * each + loaded.BESIDE
        monkeypatch.setattr("opsin_server.quantize.loaded.free_bytes", lambda device, free=free: free)
        done = quantizing.invoke(base, tmp_path / folder, "--scheme", "int4", "--calibrate", rows)
        assert done.exit_code == 0, done.output
    assert seen == [torch.float32, torch.bfloat16]
    wide, narrow = (quantizing.report(tmp_path / folder) for folder in ("wide", "narrow"))
    assert narrow["kl"] == pytest.approx(wide["kl"], rel=0.5)
    assert narrow["layers"][0]["output_error"] == pytest.approx(wide["layers"][0]["output_error"], rel=0.1)


def test_bars_are_for_terminals(base: Path, tmp_path: Path) -> None:
    rows = quantizing.texts(tmp_path / "rows.jsonl", 2)
    quiet = quantizing.invoke(base, tmp_path / "a", "--scheme", "int4", "--calibrate", rows)
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    shown = quantizing.invoke(base, tmp_path / "b", "--scheme", "int4", "--calibrate", rows, FORCE_COLOR="1")
    for what in ("reading", "loading", "calibrating", "quantizing", "comparing"):
        assert what in shown.stderr
    assert "calibrating" not in shown.stdout
