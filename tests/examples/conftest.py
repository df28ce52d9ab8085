"""What the tests of examples/mini share: the package on the path, the fonts there are, and a tiny model."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
MINI = Path(__file__).parents[2] / "examples/mini"
sys.path.append(str(MINI))  # last, so that the scripts' plain names hide nobody's package

from mini_opsin.fonts import Fonts, find_fonts  # noqa: E402
from mini_opsin.model import Sizes  # noqa: E402

MODELS = Path(__file__).parents[2] / "server/opsin_server/models"
TINY = Sizes(vision_depth=1, vision_dim=32, layers=3, dim=64, mlp=64)


@pytest.fixture(scope="session")
def mini() -> Path:
    return MINI


@pytest.fixture(scope="session")
def models() -> Path:
    """Where the server keeps the shipped model and its samples."""
    return MODELS


@pytest.fixture(scope="session")
def shipped() -> Path:
    return MODELS / "opsin-mini"


@pytest.fixture(scope="session")
def fonts() -> Fonts:
    """Whatever this machine has; Pillow's own font where it has none."""
    return find_fonts(lenient=True)


@pytest.fixture(scope="session")
def bare_fonts(tmp_path_factory: pytest.TempPathFactory) -> Fonts:
    """A machine without any font."""
    return find_fonts(tmp_path_factory.mktemp("no-fonts"), lenient=True)


@pytest.fixture(scope="session")
def tiny() -> Sizes:
    return TINY
