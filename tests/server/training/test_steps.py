"""What must not change a step: how its work is cut, what is kept, what was computed before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opsin_plugins.blocks.trainee_lora import TraineeLora
from opsin_server.engine.training import micro_step
from opsin_server.engine.training.kept_bytes import KeptBytes
from opsin_server.engine.training.micro_batch import collate
from opsin_server.engine.training.micro_step import VisualInput
from opsin_server.engine.training.modules import trained_modules
from opsin_server.engine.training.objectives import Supervised
from opsin_server.engine.training.pieces import Piece
from opsin_server.engine.training.trainee import Trainee
from opsin_server.ipc.training_settings import TrainingSettings
from support.training import Base, Example, base, drive, example, examples

SEEING = ["qwen2_vl", "qwen3_vl", "llava_next", "mllama"]
ALL = ("vision", "projector", "language", "cross")


def trainee(found: Base, *parts: str, **settings: Any) -> Trainee:
    """Its B are not zeros, so that every factor has a gradient."""
    asked = TrainingSettings(modules=found.of(*parts), rank=3, **settings)
    made = Trainee(
        trained_modules(asked.modules, found.trained.targets), found.trained.linears, asked, torch.device("cpu")
    )
    torch.manual_seed(1)
    with torch.no_grad():
        made.flat.add_(torch.randn_like(made.flat) * 0.05)
    return made


def gradient(
    found: Base,
    made: Trainee,
    batches: Sequence[Sequence[Example]],
    kept: int = 2**30,
    seed: int = 0,
    stored: bool = False,
) -> tuple[Tensor, list[float], KeptBytes]:
    """Of the mean loss of all labels of all batches; the losses; what was kept."""
    made.gradient.zero_()
    labels = sum(int(one.row.labels.sum()) for batch in batches for one in batch)
    budget, losses = KeptBytes(kept, [*found.ours.model.parameters(), *found.ours.model.buffers(), made.flat]), []
    for rows in batches:
        batch = collate([one.row for one in rows], found.ours.spec, torch.device("cpu"))
        pixels = {digest: own for one in rows for digest, own in one.pixels.items()}
        visual = VisualInput([pixels[item.digest] for item in batch.items])
        if stored and batch.items:
            orders = [None if p.arrange is None else torch.from_numpy(p.arrange).long() for p in visual.pixels]
            patches = torch.cat([torch.from_numpy(p.patches) for p in visual.pixels])
            with torch.no_grad():
                visual = VisualInput(tokens=torch.cat(found.ours.model.encode(patches, batch.items, orders)))
        done = drive(micro_step.train(found.ours.model, batch, visual, made.lora(seed), budget, Supervised(labels)))
        losses += done.losses.tolist()
    return made.gradient.clone(), losses, budget


@pytest.mark.parametrize("family", SEEING)
def test_pieces_that_are_made_again_give_the_same_bits(family: str, tmp_path: Path) -> None:
    found = base(family, tmp_path)
    made, rows = trainee(found, *ALL, dropout=0.2), examples(found.ours)
    kept, losses, budget = gradient(found, made, [rows])
    again, same, nothing = gradient(found, made, [rows], kept=0)
    some, _, part = gradient(found, made, [rows], kept=budget.most // 3)
    assert torch.equal(kept, again)
    assert torch.equal(kept, some)
    assert losses == same
    assert nothing.most == 0 < part.most <= budget.most // 3 < budget.most
    assert budget.used == part.used == 0
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("family", SEEING)
def test_rows_alone_and_packed_are_one_batch(family: str, tmp_path: Path) -> None:
    """Also with rows of no picture, one and two, whose positions have several axes."""
    found = base(family, tmp_path)
    made, rows = trainee(found, *ALL), examples(found.ours, 5)
    packed, losses, _ = gradient(found, made, [rows])
    alone, apart, _ = gradient(found, made, [[one] for one in rows])
    halves, _, _ = gradient(found, made, [rows[:2], rows[2:]])
    assert losses == pytest.approx(apart, abs=1e-4)
    assert torch.allclose(packed, alone, atol=1e-5)
    assert torch.allclose(packed, halves, atol=1e-5)
    assert packed.abs().max() > 1e-3


@pytest.mark.parametrize("family", SEEING)
def test_stored_visual_tokens_are_as_good_as_new_ones(family: str, tmp_path: Path) -> None:
    found = base(family, tmp_path)
    made, rows = trainee(found, "language", "cross"), examples(found.ours)
    new, losses, _ = gradient(found, made, [rows])
    stored, same, _ = gradient(found, made, [rows], stored=True)
    assert losses == pytest.approx(same, abs=1e-5)
    assert torch.allclose(new, stored, atol=1e-6)


def test_a_picture_that_two_rows_share_is_encoded_once(tmp_path: Path) -> None:
    found = base("qwen2_vl", tmp_path)
    first, second = (example(found.ours, 5, length, [(24, 32)]) for length in (20, 23))
    twice = [first, Example(second.prompt, replace_items(second, first), first.pixels)]
    batch = collate([one.row for one in twice], found.ours.spec, torch.device("cpu"))
    assert len(batch.items) == 1
    made = trainee(found, *ALL)
    together, _, _ = gradient(found, made, [twice])
    apart, _, _ = gradient(found, made, [[one] for one in twice])
    assert torch.allclose(together, apart, atol=1e-5)


def replace_items(one: Example, other: Example) -> Any:
    from dataclasses import replace

    return replace(one.row, items=other.row.items)


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_over_a_quantized_base_as_over_the_weight_that_is_meant(
    family: str, weight_format: str, tmp_path: Path
) -> None:
    found = base(family, tmp_path / "model", weight_format)
    made, rows = trainee(found, *ALL), examples(found.ours)
    ours, losses, _ = gradient(found, made, [rows])
    meant = base(family, tmp_path / "meant")
    for path, module in found.ours.model.named_modules():
        if hasattr(module, "stored"):
            dict(meant.ours.model.named_modules())[path].stored.weight.data.copy_(module.stored.dequantized())
    theirs, same, _ = gradient(meant, trainee(meant, *ALL), [rows])
    assert losses == pytest.approx(same, abs=1e-4)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max().clamp(min=1)


def test_dropout_depends_on_its_seed_alone(tmp_path: Path) -> None:
    found = base("qwen2_vl", tmp_path)
    made, rows = trainee(found, *ALL, dropout=0.5), examples(found.ours)
    first, _, _ = gradient(found, made, [rows], seed=1)
    again, _, _ = gradient(found, made, [rows], seed=1)
    other, _, _ = gradient(found, made, [rows], seed=2)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-4)


def test_a_step_that_is_dropped_half_way_leaves_nothing(tmp_path: Path) -> None:
    """Neither a grad mode, nor what was counted as kept, nor gradients but those of the pieces that ran."""
    found = base("qwen2_vl", tmp_path)
    made, rows = trainee(found, *ALL), examples(found.ours)
    whole, _, _ = gradient(found, made, [rows])
    batch = collate([one.row for one in rows], found.ours.spec, torch.device("cpu"))
    pixels = {digest: own for one in rows for digest, own in one.pixels.items()}
    for count in range(1, 20, 3):
        kept = KeptBytes(2**30)
        visual = VisualInput([pixels[item.digest] for item in batch.items])
        pieces = micro_step.train(found.ours.model, batch, visual, made.lora(0), kept, Supervised(1))
        assert all(isinstance(next(pieces), Piece) for _ in range(count))
        pieces.close()
        assert kept.used == 0
        assert torch.is_grad_enabled()
    assert torch.equal(gradient(found, made, [rows])[0], whole)


def test_without_a_gradient_no_piece_is_kept(tmp_path: Path) -> None:
    """Of a frozen tower; and the embedding's output, which nothing that is trained has had a part in."""
    found = base("qwen2_vl", tmp_path)
    rows = examples(found.ours)
    batch = collate([one.row for one in rows], found.ours.spec, torch.device("cpu"))
    pixels = {digest: own for one in rows for digest, own in one.pixels.items()}
    lora = trainee(found, "language").lora(0)
    assert isinstance(lora, TraineeLora)
    tape = micro_step.Tape(KeptBytes(2**30))
    drive(micro_step.forward(found.ours.model, batch, VisualInput([pixels[i.digest] for i in batch.items]), lora, tape))
    assert {done.part for done in tape._done} == {"language"}
    assert len(tape._done) == found.ours.spec.decoder.layers
