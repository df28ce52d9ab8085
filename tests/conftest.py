"""Before torch is imported: one thread, and waiting threads sleep. And what tests share: a server, and a wheel."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

    from support.served import Served

ROOT = Path(__file__).parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in ("http_proxy", "https_proxy", "all_proxy"):  # what tests ask is on this machine
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)

# What is searched for takes as long as a busy machine needs.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What tests import stays: to look through it again and again took a sixth of the CPU of collecting."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    if config.getvalue("dist") != "loadfile":
        return None
    from support.scheduling import ModuleScheduling  # only where there are workers

    return ModuleScheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def _what_was_imported_is_not_looked_through() -> None:
    """A collection of all that tests import takes 0.4 s of CPU, which would count as a chat template's own."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """`opsin serve` with nothing but defaults, one a worker. What runs on it gives everything back."""
    from support.served import serving  # only for those who need it

    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install` makes of the checkout. To compile the C kernels for every level takes 20 s of CPU."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built
