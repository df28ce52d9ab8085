"""A video is an item like a picture: chunks, caches and the room there is change no token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opsin_plugins.spec import SpecError
from opsin_server.engine.scheduling.plan import Encoding
from opsin_server.ipc.messages import describe
from support import engines, oracle, tiny, videos
from support.engines import Answer, Asked

VIDEO, IMAGE = 151, tiny.IMAGE_TOKEN


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_what_is_generated_is_transformers_own(family: str, tmp_path: Path) -> None:
    """Prompts of several chunks, stills and videos in one step; then again, from the caches."""
    theirs = tiny.FAMILIES[family].make()
    ours = oracle.saved(theirs, tmp_path)

    def video(seed: int, count: int = 12):
        pictures = videos.frames(count, 40, 60, seed)
        return videos.item(ours.architecture, ours.spec, pictures, 4.0, max_pixels=1200)

    asked = [
        Asked([5, VIDEO, 7, 8, 9], [video(1)], count=8),
        Asked([9, IMAGE, 8, VIDEO, 7, VIDEO, 6], [oracle.picture(1, 40, 30), video(1), video(2, 9)], count=8),
        Asked([4, IMAGE, 11], [oracle.picture(2, 33, 33)], count=8),
    ]
    expected = [oracle.their_tokens(theirs, ours, oracle.prompt(ours, a.ids, a.images), a.count) for a in asked]
    engine = engines.make_engine(ours, max_batch_tokens=16, max_encode_patches=60)
    assert all(item.patches > 60 for item in describe([video(1), video(2, 9)])), "a step encodes a part of them"
    assert [a.tokens for a in engines.ask(engine, ours, asked)] == expected
    again = engines.ask(engine, ours, asked[:1])[0]
    assert again.tokens == expected[0]
    assert again.cached > 4
    other = Asked(asked[0].ids, [video(3)], count=8)
    assert engines.ask(engine, ours, [other])[0].cached < 4, "another video is not the same prompt"


@pytest.mark.parametrize("ahead", [False, True])
def test_a_long_video_keeps_nobody_waiting(ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands at its prompt's very beginning: no row of it can be computed meanwhile."""
    theirs = tiny.qwen2_vl()
    ours = oracle.saved(theirs, tmp_path)
    item = videos.item(ours.architecture, ours.spec, videos.frames(24, 40, 60), 4.0, max_pixels=1200)
    layers, rows, columns = item.grid
    asked = Asked([VIDEO, 7, 8], [item], count=4)
    expected = oracle.their_tokens(theirs, ours, oracle.prompt(ours, asked.ids, asked.images), asked.count)
    engine = engines.make_engine(ours, max_encode_patches=2 * rows * columns)
    engine.run_ahead = ahead
    monkeypatch.setattr("opsin_server.engine.engine.Stopwatch.seconds", lambda self: 1e-4)
    encode, encoded = engine.runner.encode, list[int]()

    def counted(images: list[Encoding]) -> None:
        encoded.append(sum(image.part.grid[0] for image in images))
        encode(images)

    monkeypatch.setattr(engine.runner, "encode", counted)
    answers: dict[str, Answer] = {}
    engines.submit(engine, ours, "chat", Asked([5, 6, 7], count=40))
    engines.collect(engine.step() + engine.step(), answers)
    engines.submit(engine, ours, "video", asked)
    while "video" not in answers:
        before = len(answers["chat"].tokens)
        engines.collect(engine.step(), answers)
        assert len(answers["chat"].tokens) == before + 1
    assert encoded == [2] * (layers // 2)
    while engine.busy:
        engines.collect(engine.step(), answers)
    assert answers["video"].tokens == expected


def test_what_does_not_fit_is_refused_and_harms_nobody(tmp_path: Path) -> None:
    ours = oracle.saved(tiny.qwen2_vl(), tmp_path)
    item = videos.item(ours.architecture, ours.spec, videos.frames(12, 40, 60), 4.0, max_pixels=1200)
    engine = engines.make_engine(ours, encoder_blocks=item.tokens // 4 - 1)
    with pytest.raises(SpecError, match="encoder blocks"):
        engines.submit(engine, ours, "a", Asked([5, VIDEO, 7], [item]))
    torn = replace(item, pixels=item.pixels[: len(item.pixels) * 3 // 4])
    with pytest.raises(SpecError, match="do not fit grid"):
        engines.submit(engine, ours, "b", Asked([5, VIDEO, 7], [torn]))
    assert not engine.busy
