"""bench/serve.py, run as a person runs it, on little: it ends by itself, leaves no child, and its JSON is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from machine import alive
from processes import Child, Threads, wait_until

from support.served import wait_for

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "serve.py"
MARK = "OPSIN_BENCH_TEST"
ONE = Threads(1, "passive")


def left_behind(mark: str) -> list[str]:
    """Commands of processes with the mark in their environment."""
    out = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                out.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # gone, or not ours
            continue
    return out


@pytest.mark.nightly  # (half a minute, most of it the other systems)
@pytest.mark.timeout(200)
def test_a_quick_run_measures_all_three_systems(tmp_path):
    out, mark = tmp_path / "out.json", str(os.getpid())
    command = [sys.executable, str(SCRIPT), "--quick", "--new-tokens", "8", "--text-tokens", "16", "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env={**os.environ, MARK: mark}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert left_behind(mark) == []

    document = json.loads(out.read_text())
    cells = {(c["system"], c["streams"]): c for c in document["cells"]}
    assert set(cells) == {(s, n) for s in ("opsin", "transformers serve", "generate") for n in (1, 8)}
    for cell in cells.values():
        assert cell["summary"]["tok_s"]["median"] > 0
        assert cell["summary"]["ttft_ms"]["median"] > 0
        assert cell["summary"]["tpot_ms"]["median"] > 0
    lengths = {s["prompt_tokens"] for c in cells.values() for s in c["samples"]}
    assert len(lengths) == 1  # all three saw prompts of the same length
    assert {r["against"] for r in document["ratios"]} == {"transformers serve", "generate"}
    assert all(a["equal"] for a in document["same_answers"]["mini"].values()), document["same_answers"]
    assert all(b["ms"]["model"] > 0 for b in document["budget"])
    assert str(tmp_path) not in out.read_text()
    assert "| mini" in done.stdout
    assert out.with_suffix(".md").exists()


def test_an_unknown_model_is_refused_in_a_sentence():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--models", "huge"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "--models knows mini, 135m, not huge" in done.stderr


def test_what_outlives_a_child_in_a_session_of_its_own_is_ended_too(tmp_path):
    """Frozen or not, and whether the child goes by itself or has gone already, as the engine process of Opsin may."""
    pid, go = tmp_path / "pid", tmp_path / "go"
    until_told = f"while [ ! -e {go} ]; do sleep 0.02; done"
    for frozen, ends in ((False, "sleep 100"), (True, "sleep 100"), (False, until_told)):
        pid.unlink(missing_ok=True)
        child = Child(["sh", "-c", f"setsid sh -c 'echo $$ >{pid}; exec sleep 100' & {ends}"], ONE, tmp_path / "log")
        wait_until(lambda: pid.exists() and pid.read_text().strip() != "", 10, child)
        child.cpu_seconds()
        if frozen:
            child.freeze()
        if ends == until_told:
            go.touch()
            wait_for(lambda: not alive(child.pid))  # noqa: B023
        child.stop()
        assert not alive(int(pid.read_text()))
