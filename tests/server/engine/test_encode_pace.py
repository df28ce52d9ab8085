"""What a step encodes follows from what encoding takes, between one image and the limit."""

from __future__ import annotations

import pytest

from opsin_server.engine.scheduling.encode_pace import ENCODE_SECONDS, EncodePace
from support import engines, oracle, tiny
from support.engines import Asked

MIX = [Asked([5, tiny.IMAGE_TOKEN, 7], [oracle.picture(i, 40, 30)], 2) for i in range(6)]


def test_a_step_encodes_what_was_measured_to_take_the_time() -> None:
    pace = EncodePace(10_000)
    assert pace.patches == 10_000
    for _ in range(20):
        pace.observe(500, 0.1)
    assert pace.patches == pytest.approx(500 * ENCODE_SECONDS / 0.1, abs=1)
    for _ in range(40):
        pace.observe(500, 1e-9)
    assert pace.patches == 10_000
    pace.observe(1, 100.0)
    pace.observe(1, 1e9)
    assert 0 <= pace.patches <= 10_000


@pytest.mark.parametrize(("seconds", "steps"), [(1e-4, 1), (10.0, 6)])
def test_a_slow_tower_gets_an_image_a_step(
    tmp_path, seconds: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsin_server.engine.engine.Stopwatch.seconds", lambda self: seconds)
    ours = oracle.saved(tiny.FAMILIES["qwen2_vl"].make(), tmp_path)
    engine = engines.make_engine(ours, max_batch_tokens=1000)
    engines.ask(engine, ours, [Asked([5, tiny.IMAGE_TOKEN, 7], [oracle.picture(9, 40, 30)], 2)])
    encode, encoded = engine.runner.encode, []

    def counted(images) -> None:
        encoded.append(len(images))
        encode(images)

    monkeypatch.setattr(engine.runner, "encode", counted)
    engines.ask(engine, ours, MIX)
    assert len(encoded) == steps
    assert sum(encoded) == len(MIX)
