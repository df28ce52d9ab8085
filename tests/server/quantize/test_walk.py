"""Rows and pictures that go through a model a stage at a time say what they say at once, whatever the family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opsin_plugins.blocks.checkpoint import Checkpoint
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec.visual_items import visible_images
from opsin_server.embedded import MODEL
from opsin_server.engine.training.micro_batch import collate
from opsin_server.ipc.messages import describe
from opsin_server.ipc.training_rows import Pixels, TrainingRow
from opsin_server.quantize.calibrate import Calibration
from opsin_server.quantize.choose import chosen_keys
from opsin_server.quantize.compare import states
from opsin_server.quantize.rows import Data, Rows, Set, sample_rows
from opsin_server.quantize.schemes import SCHEMES
from opsin_server.text.encode_prompt import PromptEncoder
from support import oracle, tiny

ABOUT = Data("drawn", 1, 1, 1, 1)


def rows_of(ours: oracle.Ours) -> tuple[Rows, torch.Tensor]:
    """Two rows, one with a picture and one without; and what our model says of them at once."""
    image = ours.spec.image_token
    start = [ours.spec.vision_start] if getattr(ours.spec, "vision_start", None) else []
    asked = [
        oracle.prompt(ours, [*start, 5, image, 6, 7, 8], [oracle.picture(0, 56, 56)]),
        oracle.prompt(ours, [9, 10, 11, 12], []),
    ]
    asked[0] = replace(asked[0], items=[replace(item, digest=b"one") for item in asked[0].items])
    made = []
    for prompt in asked:
        labels = np.ones(len(prompt), bool)
        labels[0] = False
        given = (prompt.expanded.ids, prompt.positions, labels, tuple(prompt.spans))
        made.append(TrainingRow(*given, describe(tuple(prompt.items)), visible_images(prompt.expanded.visible)))
    (item,) = asked[0].items
    batch = Set([collate(made, ours.spec, torch.device("cpu"))], ABOUT)
    said = torch.cat([logits[:-1] for logits in oracle.our_logits(ours, asked)])
    return Rows(batch, batch, False, lambda digest: Pixels(item.pixels, item.arrange)), said


@torch.no_grad()
@pytest.mark.parametrize("make", [tiny.qwen2_vl, tiny.qwen2_5_vl, tiny.qwen3_vl, tiny.llava, tiny.mllama, tiny.smolvlm])
def test_stage_by_stage_is_at_once_and_all_linears_are_calibrated(make: Callable[[], Any], tmp_path: Path) -> None:
    model = make()
    ours = oracle.saved(model, tmp_path / "model")
    rows, said = rows_of(ours)
    (found,) = states(ours.model, rows)
    assert torch.allclose(ours.model.logits(found), said, rtol=1e-4, atol=1e-4)
    files = read_model_files(tmp_path / "model", tiny.FAMILIES[tiny.family_of(model)].options)
    with Checkpoint(ours.model, ours.architecture.weights(ours.spec), files) as checkpoint:
        keys = chosen_keys(ours.model, checkpoint, files.tensors, WeightPolicy("int8", vision=True))
        calibration = Calibration(ours.model, checkpoint, keys, SCHEMES["int8"], 0, lambda: None)
        calibration.run(rows)
    assert calibration.written.keys() == keys.keys()
    (after,) = states(ours.model, rows)
    wanted = ours.model.logits(after)
    assert 0 < (wanted - said).abs().max() < 0.1 * said.abs().max()


def test_the_samples_are_rows_of_texts_and_drawings() -> None:
    model = open_model(Path(MODEL))
    encoder = PromptEncoder(model.files, model.architecture, model.spec)
    with sample_rows(encoder, lambda line: None) as rows:
        assert rows.calibrated is None
        assert (rows.compared.about.rows, rows.compared.about.pictures) == (21, 6)
        assert sum(len(batch.rows) for batch in rows.compared.batches) == 21
