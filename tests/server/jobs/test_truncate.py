"""Rows cut to any length: whole images, and all that speaks of them in step."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec import ImageBudget
from opsin_plugins.spec.visual_items import visible_images
from opsin_server.ipc.messages import describe
from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.jobs.truncate import truncated
from opsin_server.text.conversation import ImagePart, Message, TextPart, image_parts
from opsin_server.text.encode_prompt import PromptEncoder
from support import oracle
from support.repositories import directories
from support.repositories.catalogue import repositories

NAMES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl",
    "meta-llama/Llama-3.2-11B-Vision-Instruct": "mllama",
    "mistral-community/pixtral-12b": "llava.pixtral",
    "HuggingFaceTB/SmolVLM-256M-Instruct": "smolvlm",
}


@pytest.fixture(scope="module", params=NAMES)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    repository = repositories()[request.param]
    folder: Path = tmp_path_factory.mktemp("model") / "model"
    opened = open_model(directories.write(repository, directories.make_model(repository), folder))
    return PromptEncoder(opened.files, opened.architecture, opened.spec)


def some_row(encoder: PromptEncoder, rng: random.Random) -> TrainingRow:
    def user(count: int) -> Message:
        parts = [ImagePart("", ImageBudget(), "p") for _ in range(count)] + [TextPart("what is it?")]
        rng.shuffle(parts)
        return Message("user", tuple(parts))

    answer = Message("assistant", (TextPart("a circle"),), is_string=True)
    messages = [user(rng.choice([0, 1, 2])), answer, user(1), answer]
    images = [
        oracle.picture(rng.randrange(99), rng.randint(12, 60), rng.randint(12, 60)) for _ in image_parts(messages)
    ]
    made = encoder.encode_labelled(messages, images, [False, True, False, True])
    prompt = made.prompt
    visible = visible_images(prompt.visible)
    return TrainingRow(prompt.ids, prompt.positions, made.labels, prompt.spans, describe(prompt.items), visible)


def test_every_length(encoder: PromptEncoder) -> None:
    rng = random.Random()
    placeholder = encoder.spec.image_token
    for _ in range(4):
        row = some_row(encoder, rng)
        for length in range(1, len(row.ids) + 2):
            cut = truncated(row, length)
            kept = len(cut.ids)
            assert kept <= length
            assert cut.ids.tolist() == row.ids[:kept].tolist()
            assert np.array_equal(cut.positions, row.positions[:, :kept])
            assert cut.labels.tolist() == row.labels[:kept].tolist()
            ends = [span.start + span.length for span in cut.spans]
            assert all(end <= kept for end in ends)
            assert cut.spans == row.spans[: len(cut.spans)]
            assert [span.item for span in cut.spans] == list(range(len(cut.items)))
            assert cut.items == row.items[: len(cut.items)]
            visual = sum(sum(s.visual_mask) if s.visual_mask is not None else s.length for s in cut.spans)
            if encoder.spec.cross is None:
                assert visual == sum(item.tokens for item in cut.items)
                assert int((cut.ids == placeholder).sum()) == visual
            else:
                assert int((cut.ids == placeholder).sum()) == len(cut.items)
                assert all(run.start < kept and run.hi <= len(cut.items) for run in cut.visible)
                assert bool(cut.visible) == bool(cut.items)
            if kept < min(length, len(row.ids)):  # no image was cut in two, and one more would not have fitted
                assert any(span.start == kept and span.start + span.length > length for span in row.spans)


def test_a_short_row_is_the_same() -> None:
    ids = np.arange(5, dtype=np.int32)
    row = TrainingRow(ids, ids[None], np.ones(5, bool))
    assert truncated(row, 5) is row
