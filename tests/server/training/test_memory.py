"""A run fits into what training has, is made to fit, or is refused with the numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from opsin_server.engine.training.memory import DoesNotFit, LargestRow, RowBytes, TrainingMemory
from opsin_server.engine.training.trained_model import TrainingFailed
from opsin_server.engine.training.trainer import Trainer
from opsin_server.ipc.training_settings import TrainingSettings
from support.training import Base, LocalRows, base, drive, examples, shape_of

SIZES = TrainingMemory(
    reserve=100 * 2**20, fixed=10 * 2**20, language=RowBytes(1000, 3000, 40_000), vision=RowBytes(500, 800, 9000)
)


def test_what_is_left_keeps_pieces_and_pictures() -> None:
    settled = SIZES.settle(1024, LargestRow(300, 200))
    assert 300 < settled.micro_batch_tokens < 1024
    assert settled.kept > 10 * 2**20
    size = settled.micro_batch_tokens
    assert settled.kept >= size * (40_000 + 9000 * 200 / 300)
    least = SIZES.needs(size, size * 200 // 300)
    assert least + settled.kept + 2 * settled.store <= SIZES.reserve + 2 * 2**20


def test_a_micro_batch_is_made_smaller_until_it_fits() -> None:
    settled = SIZES.settle(100_000, LargestRow(300, 200))
    assert 300 <= settled.micro_batch_tokens < 100_000
    assert SIZES.needs(settled.micro_batch_tokens, settled.micro_batch_tokens * 200 // 300) <= SIZES.reserve
    assert SIZES.settle(100_000, LargestRow(300, 0)).kept > settled.kept


def test_a_row_that_does_not_fit_is_refused_with_what_would_do() -> None:
    with pytest.raises(DoesNotFit) as refused:
        SIZES.settle(64, LargestRow(20_000, 0))
    found = re.search(r"--train-memory (\d+) would do", str(refused.value))
    assert found is not None
    assert "20,000 tokens" in str(refused.value)
    enough = TrainingMemory(int(found[1]), SIZES.fixed, SIZES.language, SIZES.vision)
    assert enough.settle(64, LargestRow(20_000, 0)).micro_batch_tokens == 20_000


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return base("qwen2_vl", tmp_path_factory.mktemp("model"))


def trainer(found: Base, folder: Path, memory: int) -> Trainer:
    rows = examples(found.ours, 5)
    asked = TrainingSettings(modules=found.of("vision", "language"), rank=4, batch_size=5, epochs=2)
    return Trainer(found.trained, asked, LocalRows(rows), folder, memory, shape_of(rows))


def test_with_less_memory_the_same_is_learned_from_less_that_is_kept(found: Base, tmp_path: Path) -> None:
    much = trainer(found, tmp_path / "much", 2**30)
    drive(much.run())
    with pytest.raises(TrainingFailed, match="--train-memory") as refused:
        drive(trainer(found, tmp_path / "none", 2**20).run())
    least = int(re.search(r"--train-memory (\d+)", str(refused.value))[1])  # type: ignore[index]
    little = trainer(found, tmp_path / "little", least + 2**17)
    drive(little.run())
    assert little._kept.most <= 2**17 < much._kept.most
    assert (little.trainee.flat - much.trainee.flat).abs().max() < 1e-4
    for run in (much, little):
        run.close()
