"""A video is an item like a picture: chunks, caches and the room there is change no token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opsin_plugins.spec import SpecError
from opsin_server.engine.running.video_pieces import pieces_of
from opsin_server.ipc.messages import describe
from support import engines, oracle, tiny, videos
from support.engines import Asked

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
    engine = engines.make_engine(ours, max_batch_tokens=16, max_encode_patches=60)  # (a video is cut in time)
    assert all(len(pieces_of(item, 60)) > 1 for item in describe([video(1), video(2, 9)]))
    assert [a.tokens for a in engines.ask(engine, ours, asked)] == expected
    again = engines.ask(engine, ours, asked[:1])[0]
    assert again.tokens == expected[0]
    assert again.cached > 4
    other = Asked(asked[0].ids, [video(3)], count=8)
    assert engines.ask(engine, ours, [other])[0].cached < 4, "another video is not the same prompt"


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
