"""The SDK's source distribution, of the version that is installed here, and the one library that its tests lack."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import version
from pathlib import Path

GIVEN = "OPENAI_SDK_SOURCE"  # an archive, or a folder where one lies unpacked: nothing of it is downloaded then
LIBRARY = "pytest-asyncio"


def unpacked(folder: Path) -> Path:
    """The distribution's folder: what the environment names, or made of what pip downloads."""
    wanted = version("openai")
    given = os.environ.get(GIVEN)
    source = Path(given) if given else _downloaded(wanted, folder)
    if source.is_file():
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        source = folder / f"openai-{wanted}"
    found = _project(source)["project"]["version"]
    assert found == wanted, f"{source} is openai {found}, and {wanted} is installed"
    return source


def libraries(source: Path, folder: Path) -> Path:
    """A folder for PYTHONPATH, so that what only the SDK's tests import stays out of the environment."""
    needed = next(one for one in _project(source)["dependency-groups"]["dev"] if one.startswith(LIBRARY))
    _pip("install", "--no-deps", "--target", str(folder), needed)
    return folder


def _downloaded(wanted: str, folder: Path) -> Path:
    _pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), f"openai=={wanted}")
    return folder / f"openai-{wanted}.tar.gz"


def _project(source: Path) -> dict:
    return tomllib.loads((source / "pyproject.toml").read_text())


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
