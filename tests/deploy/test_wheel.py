"""The wheel holds what a server needs, and only that, and works where no checkout is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from opsin_kernels.cpu import build

ROOT = Path(__file__).parents[2]
PACKAGES = {"kernels/opsin_kernels", "plugins/opsin_plugins", "server/opsin_server", "clients/opsin_client"}
LIMIT_MB = 20


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("git is what knows the files")
    command = ["git", "ls-files", "-co", "--exclude-standard", *PACKAGES]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {path.split("/", 1)[1] for path in listing.stdout.splitlines() if (ROOT / path).exists()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    libraries = {f"opsin_kernels/cpu/{build.library_name(level)}" for level in build.levels()}
    assert {name for name in names if ".dist-info/" not in name} == ours | libraries
    for needed in (
        "models/opsin-mini/model.safetensors",
        "models/opsin-mini/tokenizer.json",
        "models/opsin-mini/chat_template.jinja",
        "models/samples/samples.json",
        "models/samples/red_circle.png",
    ):
        assert f"opsin_server/{needed}" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_nothing_else_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {path.split("/")[1] for path in PACKAGES}
    assert wheel.stat().st_size < LIMIT_MB * 1e6


def test_it_works_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import sys, importlib.metadata as m, opsin_server, opsin_server.embedded as e\n"
        "assert opsin_server.__file__.startswith(sys.argv[1]), opsin_server.__file__\n"
        "assert str(m.distribution('opsin').locate_file('')).startswith(sys.argv[1])\n"
        "assert e.MODEL.is_dir() and e.SAMPLES.is_dir()\n"
        "from opsin_kernels.cpu import native\n"
        "assert not isinstance(native.native(), str), native.native()\n"
        "(script,) = m.distribution('opsin').entry_points.select(group='console_scripts', name='opsin')\n"
        "sys.argv[1:] = ['plugins']\n"
        "script.load()()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path / "site")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("llava", "qwen2_vl", "clip", "scatter"):
        assert name in done.stdout
