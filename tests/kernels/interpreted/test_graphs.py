"""Decode steps on buffers that never move, as a recording needs them. To replay, here, is to run a step again."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from opsin_kernels import dispatch
from opsin_kernels.gpu import quantized_linear as gpu
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_server.config import KvDType
from opsin_server.engine.engine import Engine
from opsin_server.engine.running.cuda_graphs import DecodeGraphs, batch_sizes, context_sizes
from support import adapters, engines, oracle, tiny
from support.engines import Asked

IMAGE = tiny.IMAGE_TOKEN
# These give the host a number, make a tensor of host numbers, or have a shape that depends on values.
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "repeat_interleave")


class NothingLeavesTheDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not any(word in name for word in FORBIDDEN), f"a recording cannot hold {name}"
        return func(*args, **(kwargs or {}))


def record(run: Callable[[], object]) -> Callable[[], object]:
    def replay() -> None:
        with NothingLeavesTheDevice():
            run()

    return replay


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_recorded_steps_give_the_same_tokens(family: str, tmp_path) -> None:
    theirs = tiny.FAMILIES[family].make()
    ours = oracle.saved(theirs, tmp_path)
    mix = [
        Asked([5, 6, IMAGE, 7, 8, 9], [oracle.picture(0, 40, 30)], count=4),
        Asked([4, 3, 11, 12, 13], count=7),
        Asked([9, 8, 7, 6], count=5),
    ]
    expected = [oracle.their_tokens(theirs, ours, oracle.prompt(ours, a.ids, a.images), a.count) for a in mix]
    engine = engines.make_engine(ours, max_batch_tokens=40)
    pool = engine.runner.pool
    graphs = DecodeGraphs(ours.model, pool, 16, 400, record, engine.runner.cross_kv)
    graphs.prepare()
    assert all(not layer.any() for layer in pool), "preparing writes nothing"
    engine.runner.graphs = graphs
    sizes: list[int] = []
    run = graphs.run

    def counted(batch, *others):
        sizes.append(len(batch.chunks))
        return run(batch, *others)

    graphs.run = counted
    assert [a.tokens for a in engines.ask(engine, ours, mix)] == expected
    assert len(sizes) >= 6, "they were recorded steps, those with a picture too"
    assert len(set(sizes)) > 1, "of several sizes"


@pytest.mark.parametrize(("form", "kv_dtype"), [("int4", "auto"), ("int8", "int8"), ("fp8", "fp8")])
def test_recorded_steps_of_few_bits_give_the_definitions_tokens(form: str, kv_dtype: KvDType, tmp_path) -> None:
    ours = oracle.saved(tiny.qwen2_vl(), tmp_path, policy=WeightPolicy(form, vision=True))
    mix = [Asked([5, 6, IMAGE, 7, 8, 9], [oracle.picture(0, 12, 20)], count=3), Asked([4, 3, 11], count=5)]
    with mock.patch.object(dispatch, "INTERPRETED", False):
        expected = [answer.tokens for answer in engines.ask(engines.make_engine(ours, kv_dtype=kv_dtype), ours, mix)]
    engine = engines.make_engine(ours, kv_dtype=kv_dtype)
    engine.runner.graphs = graphs = DecodeGraphs(ours.model, engine.runner.pool, 4, 400, record)
    graphs.prepare()
    with mock.patch.object(gpu, "linear", wraps=gpu.linear) as linear:
        assert [answer.tokens for answer in engines.ask(engine, ours, mix)] == expected
    assert linear.call_count > 20, "it was the kernel that ran"


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_recorded_steps_hold_adapters(family: str, tmp_path) -> None:
    """The same tokens as steps that are launched anew; base rows beside them, and alone."""
    directory = tiny.save(tiny.FAMILIES[family].make(), tmp_path / "model")
    ours = oracle.load(directory, options=tiny.FAMILIES[family].options)
    refs = [None] + [adapters.write(tmp_path / f"{n}.safetensors", adapters.random(ours, 2 + n, n)) for n in range(2)]
    shown = [oracle.picture(0, 12, 20)]  # (small: it is taken in by steps that no recording holds)
    turns = [([5, 6, IMAGE, 7, 8, 9], shown, 1), ([4, 3, 11], [], 0), ([9, 8, 7], [], 2), ([9, 8, 7], [], 0)]

    def answers(engine: Engine) -> list[list[int]]:
        found: dict[str, engines.Answer] = {}
        for number, (ids, images, adapter) in enumerate(turns):
            engines.submit(engine, ours, str(number), Asked(ids, images, max(3, 2 * number)), adapter=refs[adapter])
        while engine.sequences:
            engines.collect(engine.step(), found)
        return [found[str(number)].tokens for number in range(len(turns))]

    expected = answers(engines.make_engine(ours, adapter_slots=2))
    engine = engines.make_engine(ours, adapter_slots=2)
    runner, recorded = engine.runner, []
    runner.graphs = DecodeGraphs(ours.model, runner.pool, 4, 400, record, engine.runner.cross_kv, runner.adapters)
    runner.graphs.prepare()
    made, run = runner.graphs.count, runner.graphs.run

    def counted(batch, *others):
        recorded.append(batch.has_adapters)
        return run(batch, *others)

    runner.graphs.run = counted
    assert answers(engine) == expected
    assert set(recorded) == {True, False}, "base rows alone pay nothing"
    assert runner.graphs.count == made, "all were recorded at the start"
    assert made == len(batch_sizes(4)) * 2 * (1 + bool(runner.cross_kv))


@pytest.mark.parametrize(
    "leak", [lambda: torch.ones(1).item(), lambda: torch.tensor([1]), lambda: torch.ones(2).nonzero()]
)
def test_what_a_recording_cannot_hold_is_noticed(leak: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match="cannot hold"):
        record(leak)()


def test_sizes_reach_the_largest_and_waste_little() -> None:
    for largest in (1, 3, 8, 64, 100, 256, 300):
        sizes = batch_sizes(largest)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == largest
    assert all((b - a - 1) / b < 0.2 for a, b in zip(batch_sizes(512), batch_sizes(512)[1:], strict=False) if b > 32)
    assert context_sizes(400) == [400]
    assert context_sizes(32768) == [1024, 4096, 16384, 32768]


def test_contexts_with_as_many_parts_share_a_recording(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opsin_kernels.gpu import attention_shapes

    monkeypatch.setattr(attention_shapes, "processors_of", lambda device: 132)
    ours = oracle.saved(tiny.FAMILIES["llava"].make(), tmp_path)
    made: list[object] = []
    graphs = DecodeGraphs(
        ours.model, engines.make_engine(ours).runner.pool, 256, 30000, lambda run: made.append(run) or run
    )
    graphs.prepare()
    sizes, contexts = batch_sizes(256), context_sizes(30000)
    assert len(sizes) < len(made) < 0.6 * len(sizes) * len(contexts)
