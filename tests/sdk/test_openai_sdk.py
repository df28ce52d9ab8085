"""The SDK's own tests of what Opsin has, unmodified, against a running server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from sdk.originals import MODEL
from sdk.sources import libraries, unpacked
from sdk.verdict import NOT_ASKED, PASSED, judge, read_exemptions, read_outcomes
from support.served import Served

HERE = Path(__file__).parent
TESTS = (
    "chat/test_completions.py", "chat/completions/test_messages.py", "test_responses.py",
    "responses/test_input_items.py", "responses/test_input_tokens.py", "test_models.py", "test_completions.py",
    "test_embeddings.py", "test_batches.py", "test_webhooks.py", "webhooks/test_event_types.py",
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
    options = ("--served-model-name", MODEL, "--store", "--matryoshka", "--webhook-allow", "127.0.0.1")
    with Served(*options, storage=("--data-dir", str(data))) as served:
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "TEST_API_BASE_URL": f"{served.url}/v1"}
        done = run(source, data / "opsin.db", report, served.room.environment(**environment))
        served.close()
    assert done.returncode in (0, 1), done.stdout + done.stderr  # all were run, whatever became of them
    verdict = judge(read_outcomes(report), read_exemptions(HERE / "exemptions.toml"))
    with capsys.disabled():
        print(f"\n{verdict}")
    asked, other, listed = verdict.counts[PASSED], verdict.counts[NOT_ASKED], sum(verdict.listed.values())
    record_property("result", f"{asked} passed, {other} more without a request, {listed} listed with a reason")
    record_property("sdk", f"openai {version('openai')}")
    for file, share in (*verdict.shares.items(), ("all", verdict.total)):
        record_property("share", f"{file} {share.passed} {share.asked} {share.all_parameters}")
    for reason, number in verdict.listed.items():
        record_property("listed", f"{number} {reason}")
    assert not verdict.problems


def run(source: Path, database: Path, report: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """With the SDK's own settings of pytest, but in one process."""
    options = ("-p", "sdk.plugin", "--opsin-database", str(database), "--junitxml", str(report))
    settings = ("-p", "no:cacheprovider", "-o", "addopts=--tb=short", "-o", "junit_family=xunit1")
    files = [f"tests/api_resources/{one}" for one in TESTS]
    command = [sys.executable, "-m", "pytest", *settings, *options, *files]
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
