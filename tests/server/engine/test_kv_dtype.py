"""Keys and values in 8 bits: answers are near, prefixes are still found, and the memory is what it is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opsin_server.config import EngineConfig
from opsin_server.engine.startup.load import load_engine
from opsin_server.engine.startup.memory_plan import kv_bytes_per_token
from opsin_server.errors import ConfigError
from opsin_server.ipc.messages import Sampling
from support import engines, oracle, quantized_checks, tiny
from support.engines import Answer, Asked
from support.oracle import Ours


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Ours:
    return oracle.saved(tiny.qwen2_vl(), tmp_path_factory.mktemp("model"))


def answers(ours: Ours, kind: str, asked: list[Asked]) -> list[Answer]:
    engine = engines.make_engine(ours, kv_dtype=kind, max_batch_tokens=256)  # type: ignore[arg-type]
    return engines.ask(engine, ours, asked)


def test_answers_are_near(ours: Ours) -> None:
    image = ours.spec.image_token
    assert image is not None
    sampling = Sampling(temperature=0.0, top_logprobs=1)
    asked = [
        Asked([9, image, 8, 7], [oracle.picture(0, 56, 56)], 2, sampling),
        Asked(list(range(5, 60)), (), 2, sampling),
    ]
    plain, small = answers(ours, "auto", asked), answers(ours, "int8", asked)
    for one, two in zip(plain, small, strict=True):
        assert one.logprobs[0].chosen == pytest.approx(two.logprobs[0].chosen, abs=0.05)
        assert one.logprobs != two.logprobs


def test_a_prefix_that_is_kept_is_the_one_that_was_computed(ours: Ours) -> None:
    engine = engines.make_engine(ours, kv_dtype="int8")
    asked = [Asked(list(range(5, 45)), (), 6)]
    (first,) = engines.ask(engine, ours, asked)
    (second,) = engines.ask(engine, ours, asked)
    assert (first.cached, second.cached > 30) == (0, True)
    assert first.tokens == second.tokens


def test_memory_is_counted_as_it_is_taken(tmp_path: Path) -> None:
    quantized_checks.tiny().save_pretrained(tmp_path)
    config = EngineConfig(model=str(tmp_path), max_context=64, max_sequences=2, kv_dtype="int8")
    loaded = load_engine(config, lambda done, total: None)
    decoder = loaded.base.model.spec.decoder
    assert kv_bytes_per_token(decoder, 4, "int8") == 2 * 2 * 2 * (64 + 4)
    taken = sum(layer.nbytes for layer in loaded.engine.runner.pool)
    assert taken == loaded.ready.memory["keys and values"]
    assert {layer.dtype for layer in loaded.engine.runner.pool} == {torch.int8}


def test_a_gpu_refuses_it_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from opsin_server.engine.startup import memory_plan

    with pytest.raises(ConfigError, match="--kv-dtype int8 is there on a CPU alone"):
        memory_plan.resolve(EngineConfig("m", kv_dtype="int8"), None, torch.device("cuda"), 0)  # type: ignore[arg-type]
