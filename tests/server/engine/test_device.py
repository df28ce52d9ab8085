"""Which device the engine takes, and that it is the one in use everywhere."""

from __future__ import annotations

import pytest
import torch

from opsin_server.config import EngineConfig
from opsin_server.embedded import MODEL
from opsin_server.engine.startup import load
from opsin_server.engine.startup.device import choose_device
from opsin_server.engine.startup.load import load_engine
from opsin_server.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """A machine with so many."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "cpu", "cpu"),
        (1, "auto", "cuda:0"),
        (2, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:0", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (12, "cuda:11", "cuda:11"),
    ],
    indirect=["gpus"],
)
def test_a_device_that_is_there(gpus: int, name: str, expected: str) -> None:
    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("gpus", "name", "said"),
    [
        (0, "cuda", "--device cuda: torch sees no CUDA device"),
        (0, "cuda:1", "--device cuda:1: torch sees no CUDA device"),
        (1, "cuda:1", "--device cuda:1: torch sees 1 CUDA device, counted from cuda:0"),
        (2, "cuda:7", "--device cuda:7: torch sees 2 CUDA devices, counted from cuda:0"),
    ],
    indirect=["gpus"],
)
def test_a_device_that_is_not_there_is_refused_with_how_many_are(gpus: int, name: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_device(name)
    assert str(refused.value) == said


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_the_device_is_the_current_one_before_anything_is_made_on_it(
    gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels, streams, events and graphs go to the current device, whatever their tensors say."""
    used: list[object] = []

    def no_further(device: torch.device) -> int:
        used.append(("memory", device))
        raise ConfigError("far enough")

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: used.append(("current", device)))
    monkeypatch.setattr(load, "free_bytes", no_further)
    with pytest.raises(ConfigError, match="far enough"):
        load_engine(EngineConfig(str(MODEL), device="cuda:1"), lambda done, total: None)
    second = torch.device("cuda:1")
    assert used == [("current", second), ("memory", second)]


def test_a_configuration_names_a_device() -> None:
    with pytest.raises(ValueError, match="'cuda1' is no device"):
        EngineConfig(str(MODEL), device="cuda1")
