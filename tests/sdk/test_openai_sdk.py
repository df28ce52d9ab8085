"""The SDK's own tests of files, uploads and fine-tuning, unmodified, against a running server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdk.originals import MODEL
from sdk.sources import libraries, unpacked
from sdk.verdict import NOT_ASKED, PASSED, judge, read_exemptions, read_outcomes
from support.served import Served

HERE = Path(__file__).parent
TESTS = (
    "test_files.py", "test_uploads.py", "uploads/test_parts.py", "fine_tuning/test_jobs.py",
    "fine_tuning/jobs/test_checkpoints.py", "fine_tuning/checkpoints/test_permissions.py",
    "fine_tuning/alpha/test_graders.py",
)  # fmt: skip


@pytest.mark.nightly
def test_the_sdks_own_tests_pass_but_for_those_listed(
    tmp_path: Path, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    source = unpacked(tmp_path)
    path = [str(libraries(source, tmp_path / "libraries")), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    data, report = tmp_path / "data", tmp_path / "report.xml"
    with Served("--served-model-name", MODEL, storage=("--data-dir", str(data))) as served:
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "TEST_API_BASE_URL": f"{served.url}/v1"}
        done = run(source, data / "opsin.db", report, served.room.environment(**environment))
        served.close()
    assert done.returncode in (0, 1), done.stdout + done.stderr  # all were run, whatever became of them
    verdict = judge(read_outcomes(report), read_exemptions(HERE / "exemptions.toml"))
    with capsys.disabled():
        print(f"\n{verdict}")
    asked, other, listed = verdict.counts[PASSED], verdict.counts[NOT_ASKED], sum(verdict.listed.values())
    record_property("result", f"{asked} passed, {other} more without a request, {listed} listed with a reason")
    assert not verdict.problems


def run(source: Path, database: Path, report: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """With the SDK's own settings of pytest, but in one process."""
    options = ("-p", "sdk.plugin", "--opsin-database", str(database), "--junitxml", str(report))
    settings = ("-p", "no:cacheprovider", "-o", "addopts=--tb=short", "-o", "junit_family=xunit1")
    files = [f"tests/api_resources/{one}" for one in TESTS]
    command = [sys.executable, "-m", "pytest", *settings, *options, *files]
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
