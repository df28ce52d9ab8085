"""The kernels' tests as rows of bench/gpu.sh: each as it ends, failed ones again, and none lost with a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import rows
from gpu_plan import TESTS

BENCH = Path(rows.__file__).parent
BROKEN = """
import sys
from types import SimpleNamespace


def test_before():
    pass


def test_breaks_the_device():
    def synchronize():
        raise RuntimeError("an illegal memory access was encountered")

    sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize))
    assert False, "wrong numbers"


def test_next():
    pass


def test_after():
    assert "torch" not in sys.modules, "it runs in a fresh process"
"""
FINE = "def test_before(): pass\ndef test_breaks_the_device(): pass\ndef test_next(): pass\ndef test_after(): pass\n"


def run(folder: Path, text: str) -> str:
    (folder / "test_one.py").write_text(text)
    line = [sys.executable, "-m", "pytest", "-q", "-p", "xdist.plugin", "-p", "pytest_rows", "-n", "1", "test_one.py"]
    environment = os.environ | {
        "PYTHONPATH": str(BENCH), "OPSIN_BENCH_ROWS": str(folder / "rows.jsonl"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }  # fmt: skip
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def short(names: object) -> list[str]:
    return sorted(str(name).rpartition("::")[2] for name in names)  # type: ignore[attr-defined]


def test_a_test_that_breaks_the_device_costs_its_worker_and_a_second_command_runs_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows.append(path, {"command": "first"})
    said = run(tmp_path, BROKEN)
    failed = rows.failures(rows.read(path))
    assert short(rows.succeeded(rows.read(path))) == ["test_after", "test_before"], said
    assert short(failed) == [TESTS, "test_breaks_the_device", "test_next"]
    assert failed["test_one.py::test_breaks_the_device"]["failure"].startswith("E       AssertionError: wrong numbers")
    assert failed[TESTS]["failure"].startswith("2 failed, 2 passed")

    before = len(rows.read(path))
    rows.append(path, {"command": "second"})
    run(tmp_path, FINE)
    new = [line["row"] for line in rows.read(path)[before:] if "row" in line]
    assert short(new) == [TESTS, "test_breaks_the_device", "test_next"]
    assert rows.succeeded(rows.read(path))[TESTS]["passed"] == 4


def test_a_file_that_cannot_be_imported_is_a_failed_row(tmp_path: Path) -> None:
    run(tmp_path, "import a_module_that_is_not_there")
    found = rows.failures(rows.read(tmp_path / "rows.jsonl"))
    assert "ModuleNotFoundError" in found["test_one.py"]["failure"]
    assert TESTS in found
