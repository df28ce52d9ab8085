"""The plugin against the contract, and what is its own. Needs the plugin installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from opsin_glimpse.family import Glimpse

from opsin_plugins.conformance.batches import whole
from opsin_plugins.conformance.kit import check_architecture, named
from opsin_plugins.conformance.subject import Subject
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import ImageBudget


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject("glimpse", Glimpse(), Registry(), tmp_path)


def test_it_keeps_the_contract() -> None:
    registry = Registry()
    results = check_architecture("glimpse", named("glimpse", registry), registry)
    assert [str(result) for result in results if result.verdict == "FAILED"] == []


def test_every_picture_becomes_sixteen_visual_tokens(subject: Subject) -> None:
    for size in ((40, 30), (200, 7)):
        image = np.zeros((*size, 3), np.uint8)
        (item,) = Glimpse().preprocess([image], subject.spec, ImageBudget())
        assert (item.grid, item.tokens) == ((1, 8, 8), 16)


@torch.no_grad()
def test_a_gate_of_zero_hides_the_pictures(subject: Subject) -> None:
    turn = subject.turns[0][0]
    a, b = subject.prompt(turn, [(40, 30)]), subject.prompt(turn, [(12, 70)])
    assert not torch.equal(*whole(subject.model, [a, b]))
    subject.model.get_parameter("fusion.gate").zero_()
    assert torch.equal(*whole(subject.model, [a, b]))
