"""What samples are summed up as: percentiles, spreads, ratios, the budget of a step."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import report
from cells import Cell, Sample, sample
from processes import BenchError, Threads
from stats import Spread, covered, percentile, short
from systems import GENERATE, OPSIN, SERVE, engine_seconds

ONE = Sample(
    round=0,
    requests=8,
    new_tokens=11,
    prompt_tokens=110,
    wall_s=1.2,
    tok_s=600.0,
    decode_s=1.1,
    decode_tok_s=700.0,
    ttft_ms=100.0,
    tpot_ms=10.0,
    gap_p99_ms=15.0,
    client_cpu_s=0.1,
    server_cpu_s={"first": 0.2, "rest": 1.1},
    cpu_ms=1.5,
    foreign_cpu=0.0,
)
ENGINE = {"decode.steps": 100.0, "decode.model": 0.7, "decode.sample": 0.1, "prefill.steps": 2.0, "prefill.model": 0.15}


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([3.0], 99, 3.0), ([1.0, 2.0], 50, 1.5), ([4.0, 1.0, 3.0, 2.0], 0, 1.0), (list(range(101)), 99, 99.0)],
)
def test_percentiles_are_linear_between_neighbours(values, share, expected):
    assert percentile(values, share) == pytest.approx(expected)


def test_percentiles_of_nothing_and_beyond_a_hundred():
    assert math.isnan(percentile([], 50))
    with pytest.raises(ValueError, match="not 101"):
        percentile([1.0], 101)


def test_a_spread_shows_its_ends_only_where_there_are_several():
    assert str(Spread.of([2.0])) == "2.00"
    assert str(Spread.of([1.0, 300.0, 20.0])) == "20.0 (1.00-300)"


@pytest.mark.parametrize(("value", "shown"), [(0.0123, "0.012"), (0.5, "0.50"), (12.34, "12.3"), (12345.6, "12,346")])
def test_numbers_have_three_digits(value, shown):
    assert short(value) == shown


def test_covered_counts_overlaps_once():
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.6)]) == pytest.approx(4)


@pytest.mark.parametrize("text", ["1:passive", "2:active", "2:spin1000"])
def test_thread_settings_are_written_as_they_are_read(text):
    assert str(Threads.parse(text)) == text


@pytest.mark.parametrize("text", ["0", "two", "2:lazy", "2:spin"])
def test_other_thread_settings_are_refused(text):
    with pytest.raises(ValueError, match="is not like"):
        Threads.parse(text)


def test_a_setting_replaces_what_the_environment_has(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    environment = Threads.parse("2:spin7").environment()
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["GOMP_SPINCOUNT"] == "7"
    assert "OMP_WAIT_POLICY" not in environment


def answer(start: float, first: float, end: float, **changes: object) -> dict[str, object]:
    fields = {"start": start, "first": first, "end": end, "arrivals": [first, end], "prompt_tokens": 100}
    return fields | {"completion_tokens": 11, "text": "a", "error": None} | changes


def result(*answers: dict[str, object]) -> dict[str, object]:
    used = {"wall_seconds": 2.0, "cpu_seconds": 0.1, "client_cpu_seconds": 0.1, "machine_cpu_seconds": 2.6}
    return used | {"answers": list(answers)}


def test_a_sample_keeps_prefill_and_decode_apart():
    made = sample(result(answer(0.0, 0.5, 1.5), answer(0.0, 1.0, 2.0)), {"first": 0.5, "rest": 1.0}, {}, 11, round_=3)
    assert made.tok_s == pytest.approx(22 / 2)
    assert made.decode_tok_s == pytest.approx(20 / 1.5)
    assert made.ttft_ms == pytest.approx(750)
    assert made.tpot_ms == pytest.approx(100)
    assert made.foreign_cpu == pytest.approx((2.6 - 0.1 - 1.5) / 2)
    assert made.round == 3


@pytest.mark.parametrize("wrong", [{"completion_tokens": 10}, {"error": "no"}, {"first": None}])
def test_an_answer_that_is_short_or_wrong_is_no_measurement(wrong):
    with pytest.raises(BenchError):
        sample(result(answer(0.0, 0.5, 1.5) | wrong), {"first": 0.0, "rest": 0.0}, {}, 11, 0)


def test_a_step_is_split_without_the_prefill_that_ran_meanwhile():
    """0.15 s of prefill, of which 0.1 s fit before the first token: 1.1 - 0.05 s are 100 steps of decoding."""
    parts = report.step_parts(replace(ONE, engine=ENGINE))
    assert parts["step"] == pytest.approx(10.5)
    assert parts["model"] == pytest.approx(7)
    assert parts["rest"] == pytest.approx(10.5 - 8)
    assert parts["api_cpu"] == pytest.approx(1e3 * 0.2 / 102)


def test_the_parts_of_a_step_are_read_from_prometheus_text():
    text = '# HELP x\nopsin_step_seconds_total{engine="0",part="decode.model"} 1.5\nopsin_steps_total{engine="0"} 4.0\n'
    assert engine_seconds(text) == {"decode.model": 1.5}
    text += 'opsin_decode_steps_total{engine="0"} 3.0\n'
    assert engine_seconds(text) == {"decode.model": 1.5, "decode.steps": 3, "prefill.steps": 1}


def document() -> dict[str, object]:
    cells = [
        Cell("mini", OPSIN, 8, "1:passive", [replace(ONE, engine=ENGINE), replace(ONE, round=1, tok_s=500.0)]),
        Cell("mini", SERVE, 8, "1:passive", [replace(ONE, tok_s=100.0), replace(ONE, round=1, tok_s=50.0)]),
        Cell("mini", GENERATE, 8, "1:passive", [replace(ONE, round=1, tok_s=400.0)]),
        Cell("mini", GENERATE, 8, "2:active", [replace(ONE, tok_s=300.0)]),
    ]
    best = {("mini", name, 8): "1:passive" for name in (OPSIN, SERVE, GENERATE)}
    work = {"picture": "224 x 224", "text_tokens": 64, "new_tokens": 11, "precision": "float32", "repeats": 2}
    described = {"kind": "cpu-2core", "cpu": "a CPU", "cores": 2, "memory_gib": 4, "load_before": 0.1}
    same = {"mini": {SERVE: {"equal": False, "common_characters": 3, "characters": 9}}}
    work |= {"skipped_for_time": 1}
    return report.document(datetime(2026, 1, 2, tzinfo=UTC), described, work, cells, best, same)


def test_ratios_pair_the_systems_round_by_round():
    found = {r["against"]: r for r in document()["ratios"]}
    assert found[SERVE]["tok_s"] == {"median": 8.0, "min": 6.0, "max": 10.0, "count": 2}
    assert found[SERVE]["met"]
    assert found[GENERATE]["tok_s"]["median"] == pytest.approx(500 / 400)  # only the round that both have
    assert not found[GENERATE]["met"]


def test_the_report_is_whole_and_its_json_is_json(tmp_path, capsys):
    made = document()
    assert [c["threads"] for c in made["tried"]] == ["2:active"]
    text = report.serve_text(made)
    report.write(made, tmp_path / "deep" / "x.json", text)
    assert "NaN" not in (tmp_path / "deep" / "x.json").read_text()
    assert "8.00 (6.00-10.0)x" in (tmp_path / "deep" / "x.md").read_text()
    for word in ("met", "missed", "the first 3 of 9 characters", "1 samples were left out", "2026-01-02"):
        assert word in capsys.readouterr().out or word in text


def test_a_table_lines_up():
    lines = report.table(["a", "bcde"], [[1, 2], ["long", 3]]).splitlines()
    assert len({len(line) for line in lines}) == 1
