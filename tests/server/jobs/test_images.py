"""Images resized before the model's preprocessing, and the boxes in a row's text that go with them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from opsin_plugins.spec import ImageBudget, ImageSpec
from opsin_server.errors import ConfigError
from opsin_server.jobs.boxes import has_boxes, rescaled
from opsin_server.jobs.encode_row import BOXES_KEPT
from opsin_server.jobs.options import DataOptions, ImageOptions
from opsin_server.jobs.prepare import DataRefused, Source, prepare
from opsin_server.jobs.resize import resized, target_size
from opsin_server.text.conversation import Message, TextPart
from opsin_server.text.encode_prompt import PromptEncoder
from support import oracle, talk

SMART = ImageSpec("smart", 3, patch=8, merge=2, min_pixels=64, max_pixels=10**6)
CROP = ImageSpec("crop", 3, patch=14, size=(336, 336), shortest_edge=336)
LONGEST = ImageSpec("longest", 3, patch=16, longest_edge=1024)


@pytest.mark.parametrize(
    ("options", "spec", "given", "expected"),
    [
        (ImageOptions(), SMART, (4000, 3000), (4000, 3000)),
        (ImageOptions(resize="min"), SMART, (1024, 768), (512, 384)),  # no size of its own: 512
        (ImageOptions(resize="min"), SMART, (512, 2000), (512, 2000)),  # the width is what counts
        (ImageOptions(resize="min", side="max"), SMART, (500, 2000), (128, 512)),
        (ImageOptions(resize="min"), CROP, (672, 100), (336, 50)),
        (ImageOptions(resize="min"), LONGEST, (2048, 100), (1024, 50)),
        (ImageOptions(resize=100, side="height"), SMART, (50, 200), (25, 100)),
        (ImageOptions(resize=100, side="min"), SMART, (300, 200), (150, 100)),
        (ImageOptions(resize=100, side="max"), SMART, (90, 80), (90, 80)),  # none is made larger
        (ImageOptions(resize=100, snap=True), SMART, (200, 90), (96, 48)),
        (ImageOptions(resize=1), SMART, (1000, 3), (1, 1)),
        (ImageOptions(size=(300, 100)), SMART, (10, 10), (300, 100)),
        (ImageOptions(size=(300, 100), snap=True), SMART, (10, 10), (304, 96)),
    ],
)
def test_sizes(options: ImageOptions, spec: ImageSpec, given: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target_size(*given, options, spec) == expected


def test_pixels_are_pillows() -> None:
    picture = oracle.picture(random.randrange(99), 60, 80)
    found = resized(picture, ImageOptions(resize=40), SMART)
    expected = Image.fromarray(picture).resize((40, 30), Image.Resampling.LANCZOS)
    assert np.array_equal(found, np.asarray(expected))
    assert resized(picture, ImageOptions(), SMART) is picture


@pytest.mark.parametrize(
    ("given", "said"),
    [({"snap": True}, "nothing is resized"), ({"resize": 9, "size": (1, 1)}, "give one")],
)
def test_options_that_cannot_be_meant(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ImageOptions(**given)


@pytest.mark.parametrize("bad", [{"resize": 0}, {"resize": "some"}, {"size": [1]}, {"boxes": 1}, {"more": 1}])
def test_options_are_checked_where_they_come_in(bad: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"images": bad}, DataOptions)


def test_options_survive_json() -> None:
    for images in (ImageOptions(), ImageOptions(resize=7, side="max", snap=True), ImageOptions(size=(3, 4))):
        options = DataOptions(images=images, max_seq_length=9)
        assert msgspec.json.decode(msgspec.json.encode(options), type=DataOptions) == options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<box>(100,200),(300,400)</box>", "<box>(50,50),(150,100)</box>"),
        ("a <|box_start|>( 10, 20 ),(31,44)<|box_end|> b", "a <|box_start|>( 5, 5 ),(16,11)<|box_end|> b"),
        ('[{"bbox_2d": [10, 20, 30.5, 41], "label": "cat 10"}]', '[{"bbox_2d": [5, 5, 15.2, 10], "label": "cat 10"}]'),
        ('{"bbox":[ 10,20,30,40 ]} and "bbox_2d": [2, 4, 6, 8]', '{"bbox":[ 5,5,15,10 ]} and "bbox_2d": [1, 1, 3, 2]'),
        ('{"point_2d": [10, 20]}', '{"point_2d": [5, 5]}'),
        ("no (10,20),(30,40) box, [1, 2]", "no (10,20),(30,40) box, [1, 2]"),
        ("<box>(1,2)", "<box>(1,2)"),
    ],
)
def test_boxes_in_text(text: str, expected: str) -> None:
    messages = [Message("user", (TextPart("which?"),)), Message("assistant", (TextPart(text),), is_string=True)]
    (asked, answer) = rescaled(messages, (200, 400), (100, 100))
    assert asked == messages[0]
    assert answer == Message("assistant", (TextPart(expected),), is_string=True)
    assert has_boxes(messages) == (text != expected or ("box_2d" in text))


def test_rescaled_boxes_lie_where_they_lay() -> None:
    rng = random.Random()
    for _ in range(50):
        old, new = [(rng.randint(50, 5000), rng.randint(50, 5000)) for _ in range(2)]
        box = [rng.randint(0, old[n % 2]) for n in range(4)]
        message = Message("assistant", (TextPart(f'"bbox_2d": {box}'),))
        (found,) = rescaled([message], old, new)
        assert isinstance(found.parts[0], TextPart)
        numbers = [int(number) for number in found.parts[0].text.partition("[")[2].rstrip("]").split(",")]
        for n, (before, after) in enumerate(zip(box, numbers, strict=True)):
            assert abs(after / new[n % 2] - before / old[n % 2]) <= 0.51 / new[n % 2]


BOX = 'It is at {"bbox_2d": [32, 32, 64, 96]}.'


def row(*pictures: Image.Image) -> dict[str, Any]:
    return {"messages": [talk.user(*pictures, "where?"), talk.assistant(BOX)]}


def answer(source: Source, file: Path, out: Path) -> str:
    made = prepare(file, source, out).row(0)
    return source.encoder.tokenizer.decode(made.ids[made.labels].tolist())


def test_boxes_of_a_row(
    encoder: PromptEncoder, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    def source(**images: Any) -> Source:
        return Source(encoder, DataOptions(min_rows=1, images=ImageOptions(**images)), threads=1)

    one, two = row(picture(1, 128, 128)), row(picture(1, 128, 128), picture(2))
    file = write(one)
    assert '"bbox_2d": [16, 16, 32, 48]' in answer(source(resize=64, boxes=True), file, tmp_path / "a")
    assert "[32, 32, 64, 96]" in answer(source(resize=64), file, tmp_path / "b")
    kept = prepare(file, source(resize=64), tmp_path / "b").report.remarks
    assert [(remark.message, remark.rows, remark.line) for remark in kept] == [(BOXES_KEPT, 1, 1)]
    # The model's own resizing moves them as well.
    budget = source(max_pixels=64 * 64, boxes=True)
    assert '"bbox_2d": [16, 16, 32, 48]' in answer(budget, file, tmp_path / "c")
    unchanged = write(row(picture(1, 96, 96)), name="unchanged.jsonl")
    assert prepare(unchanged, source(), tmp_path / "d").report.remarks == ()
    with pytest.raises(DataRefused, match="the row 2 images: which one they are of is not known"):
        prepare(write(two), source(resize=64, boxes=True), tmp_path / "e")


def test_resized_images_are_made_again(
    encoder: PromptEncoder, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    options = DataOptions(min_rows=1, images=ImageOptions(resize=48))
    given = picture(3, 64, 96)
    made = prepare(write(row(given)), replace(Source(encoder), options=options), tmp_path / "out")
    (item,) = made.row(0).items
    expected = resized(np.asarray(given), options.images, SMART)
    (seen,) = encoder._architecture.preprocess([expected], encoder.spec, ImageBudget())
    assert np.array_equal(made.pixels(item.digest).patches, seen.pixels)
