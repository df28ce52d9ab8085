"""Stages against a clock: one that hangs is cut, one that dies is taken up again, and what came before is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu
import gpu_report
import pytest
import rows
from gpu import Clock, Minutes
from gpu_plan import Command, Stage

BENCH = Path(gpu.__file__).parent
SCRIPT = """
import os, sys, time
sys.path.insert(0, {bench!r})
from pathlib import Path
from rows import Rows
out = Rows(Path(sys.argv[sys.argv.index("--rows") + 1]), "stage")
for name in out.todo({names!r}):
    with out.row(name, seconds={seconds}) as values:
        if name.startswith("dies"):
            os._exit(9)
        if name.startswith("hangs"):
            time.sleep(60)
        if name.startswith("raises"):
            raise ValueError("no such tile\\nsecond line")
        values["ms"] = 1.5
"""


def script(folder: Path, *names: str, seconds: float = 30) -> Command:
    path = folder / f"{names[0].replace(' ', '-')}.py"
    path.write_text(SCRIPT.format(bench=str(BENCH), names=list(names), seconds=seconds))
    return Command((str(path),), names)


def minutes(folder: Path) -> Minutes:
    rows.append(folder / "rows.jsonl", {"command": "first"})
    return Minutes(folder, Clock(time.time()), least=0)


def failures(path: Path) -> dict[str, str]:
    return {name: line["failure"] for name, line in rows.failures(rows.read(path)).items()}


def test_a_stage_that_hangs_is_cut_and_the_next_one_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = minutes(tmp_path)
    stages = [
        Stage("one", 4, (script(tmp_path, "good", "hangs for ever", "never tried"), script(tmp_path, "beside"))),
        Stage("two", 56, (script(tmp_path, "next"),)),
    ]
    one.run(stages, [4, 60])
    assert set(rows.succeeded(rows.read(one.path))) == {"good", "beside", "next"}
    assert failures(one.path) == {"hangs for ever": "cut at the stage's deadline"}
    said = capsys.readouterr().out
    assert "one: cut at its deadline" in said
    assert "] next: " in said


def test_a_process_that_dies_costs_one_row(tmp_path: Path) -> None:
    one = minutes(tmp_path)
    stage = Stage("one", 60, (script(tmp_path, "first", "dies here", "second", "raises too", "third"),))
    one.run([stage], [60])
    assert set(rows.succeeded(rows.read(one.path))) == {"first", "second", "third"}
    assert failures(one.path) == {
        "dies here": "the process ended with 9",
        "raises too": "ValueError: no such tile",
    }


def test_a_row_that_hangs_costs_that_row_and_says_where(tmp_path: Path) -> None:
    one = minutes(tmp_path)
    one.run([Stage("one", 60, (script(tmp_path, "hangs here", "after it", seconds=1),))], [60])
    assert set(rows.succeeded(rows.read(one.path))) == {"after it"}
    assert list(failures(one.path)) == ["hangs here"]
    assert "Timeout (" in (tmp_path / "log.txt").read_text(), "what it was doing is in the log"


def test_a_process_that_cannot_start_is_not_started_for_ever(tmp_path: Path) -> None:
    one, path = minutes(tmp_path), tmp_path / "broken.py"
    path.write_text("import a_module_that_is_not_there")
    one.run([Stage("one", 60, (Command((str(path),), ("never",)),))], [60])
    assert (tmp_path / "log.txt").read_text().count("ModuleNotFoundError") == 1


def test_a_second_command_tries_what_failed_and_nothing_else(tmp_path: Path) -> None:
    one = minutes(tmp_path)
    stage = Stage("one", 60, (script(tmp_path, "good", "raises once"), script(tmp_path, "done")))
    one.run([stage], [60])
    before = len(rows.read(one.path))
    rows.append(one.path, {"command": "second"})
    script(tmp_path, "good", "raises once")
    Minutes(tmp_path, Clock(time.time())).run([stage], [60])
    after = rows.read(one.path)[before:]
    assert [line.get("row") for line in after if "row" in line] == ["raises once"]


def test_what_was_measured_outlives_a_stop(tmp_path: Path) -> None:
    """The real command, stopped in its first stage: rows and report are there, and none of its processes."""
    mark = f"stop-{os.getpid()}"
    environment = os.environ | {"OPSIN_BENCH_MARK": mark, "CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, str(BENCH / "gpu.py"), str(tmp_path), "--tiny", "--state", str(tmp_path / "state")]
    child = subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    path = tmp_path / "rows.jsonl"
    until = time.monotonic() + 60
    while not any("began" in line for line in rows.read(path)) and time.monotonic() < until:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    said, _ = child.communicate(timeout=30)
    assert child.returncode == 128 + signal.SIGTERM, said
    assert "stopped" in said
    (document,) = (json.loads(path.read_text()) for path in tmp_path.glob("gpu-*.json"))  # (named by what it has heard)
    assert "the command was stopped" in document["failed"].values()
    assert not _alive(mark)


def _alive(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"OPSIN_BENCH_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:  # gone, or not ours
            continue
    return found


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    rows.Rows(path, "stage").ended("whole", 1.0, ms=float("nan"), tall=float("inf"))
    with path.open("a") as file:
        file.write('{"row": "ha')
    (line,) = rows.read(path)
    assert (line["row"], line["ms"], line["tall"]) == ("whole", None, None)
    assert "cut off" in capsys.readouterr().err


def test_a_device_that_answers_no_more_ends_the_process(tmp_path: Path) -> None:
    out = rows.Rows(tmp_path / "rows.jsonl", "stage", broken=lambda: True)
    with pytest.raises(SystemExit, match="does not answer"), out.row("one"):
        raise RuntimeError("an illegal memory access was encountered")
    assert failures(out.path) == {"one": "RuntimeError: an illegal memory access was encountered"}


def test_the_report_names_what_failed_and_what_is_missing(tmp_path: Path) -> None:
    plans = {"first": (Stage("one", 5, (Command(("x.py",), ("steps", "bad", "late")),)),), "second": ()}
    out = rows.Rows(tmp_path / "rows.jsonl", "one")
    rows.append(out.path, {"command": "first"})
    out.ended("steps", 3.0, ms=2.0, spread=0.1, floor_ms=1.0, tokens_s=8.0, device={"name": "nvidia-x", "torch": "2"})
    out.failed("bad", "OutOfMemoryError: 3 bytes")
    for number in range(30):
        out.failed(f"tests/a.py::test_c[{number}]", "E   the same for all")
    out.ended("tests/a.py::test_b", 0.1)
    text, right = gpu_report.write(out.path, tmp_path, plans)
    assert not right
    assert "| steps | 2.000 | 0.100 | 1.000    | 50 %" in text
    for words in (
        "bad",
        "OutOfMemoryError: 3 bytes",
        "not reached",
        "1 of 3 planned rows; 1 kernel tests passed",
        "and 29 more",
    ):
        assert words in text
    assert text.count("the same for all") == 1
    document = json.loads((tmp_path / "gpu-nvidia-x.json").read_text())
    assert document["missing"] == ["late"]
    assert document["rows"]["steps"]["ms"] == 2.0
    out.ended("bad", 1.0, ms=1.0)
    out.ended("late", 1.0, ms=1.0)
    for number in range(30):
        out.ended(f"tests/a.py::test_c[{number}]", 0.1)
    assert gpu_report.write(out.path, tmp_path, plans)[1], "a later success is what counts"


def test_kernels_that_were_packed_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver loads is enough; a second command on a fresh machine waits for no compiler."""
    from opsin_kernels.tools import launches as catalogue
    from opsin_kernels.tools.stand_in_driver import absent

    folder, packed = tmp_path / "triton", tmp_path / "triton.tar.xz"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    (launch,) = (one for one in catalogue.launches() if one.name == "penalties")
    with absent(90) as first:
        launch.run()
    assert list(folder.rglob("*.ttir")), "it was compiled"
    gpu.packed(folder, packed)
    shutil.rmtree(folder)
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    with absent(90) as again:
        launch.run()
    assert [b.cubin for b in again.loaded] == [b.cubin for b in first.loaded]
    assert not any(path.read_bytes() for path in folder.rglob("*.ttir")), "it was not compiled again"
