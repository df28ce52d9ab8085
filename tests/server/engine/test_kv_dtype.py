"""Keys and values in 8 bits: answers are near, prefixes are still found, and the memory is what it is said to be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from opsin_kernels.kv_rows import KINDS
from opsin_server.config import EngineConfig, KvDType
from opsin_server.engine.startup import memory_plan
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


def answers(ours: Ours, kind: KvDType, asked: list[Asked]) -> list[Answer]:
    engine = engines.make_engine(ours, kv_dtype=kind, max_batch_tokens=256)
    return engines.ask(engine, ours, asked)


@pytest.mark.parametrize(("kind", "near"), [("int8", 0.05), ("fp8", 0.2)])
def test_answers_are_near(kind: KvDType, near: float, ours: Ours) -> None:
    image = ours.spec.image_token
    assert image is not None
    sampling = Sampling(temperature=0.0, top_logprobs=1)
    asked = [
        Asked([9, image, 8, 7], [oracle.picture(0, 56, 56)], 2, sampling),
        Asked(list(range(5, 60)), (), 2, sampling),
    ]
    plain, small = answers(ours, "auto", asked), answers(ours, kind, asked)
    for one, two in zip(plain, small, strict=True):
        assert one.logprobs[0].chosen == pytest.approx(two.logprobs[0].chosen, abs=near)
        assert one.logprobs != two.logprobs


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_prefix_that_is_kept_is_the_one_that_was_computed(kind: KvDType, ours: Ours) -> None:
    engine = engines.make_engine(ours, kv_dtype=kind)
    asked = [Asked(list(range(5, 45)), (), 6)]
    (first,) = engines.ask(engine, ours, asked)
    (second,) = engines.ask(engine, ours, asked)
    assert (first.cached, second.cached > 30) == (0, True)
    assert first.tokens == second.tokens


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_memory_is_counted_as_it_is_taken(kind: KvDType, tmp_path: Path) -> None:
    quantized_checks.tiny().save_pretrained(tmp_path)
    config = EngineConfig(model=str(tmp_path), max_context=64, max_sequences=2, kv_dtype=kind)
    loaded = load_engine(config, lambda done, total: None)
    decoder = loaded.base.model.spec.decoder
    assert kv_bytes_per_token(decoder, 4, kind) == 2 * 2 * 2 * (64 + 4)
    taken = sum(layer.nbytes for layer in loaded.engine.runner.pool)
    assert taken == loaded.ready.memory["keys and values"]
    assert {layer.dtype for layer in loaded.engine.runner.pool} == {KINDS[kind]}


@pytest.mark.parametrize(
    ("kind", "chip", "head", "refused"),
    [
        ("int8", (8, 0), 64, None),
        ("fp8", (8, 9), 64, None),
        ("fp8", (8, 6), 64, "compute capability 8.9"),
        ("int8", (9, 0), 66, "heads of 66 are no multiple of 4"),
    ],
)
def test_what_a_gpu_does_not_read_is_refused_by_name(
    kind: KvDType, chip: tuple[int, int], head: int, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: chip)
    # (What fits is known only afterwards: such a GPU has no memory at all.)
    needs = SimpleNamespace(spec=SimpleNamespace(decoder=SimpleNamespace(head_dim=head)), weights=1, dtype=torch.half)
    with pytest.raises(ConfigError, match=refused or "0 are free on cuda"):
        memory_plan.resolve(EngineConfig("m", kv_dtype=kind), needs, torch.device("cuda"), 0)  # type: ignore[arg-type]
