"""Every launch that whole models make compiles for a chip that is not here; and a start leaves nothing to compile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opsin_kernels import activations, rotary
from opsin_kernels import rms_norm as norms
from opsin_kernels.gpu import attention_shapes
from opsin_kernels.linear_cross_entropy import linear_cross_entropy
from opsin_plugins.blocks.activation_policy import ActivationPolicy
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.registry import Registry
from opsin_server.config import EngineConfig, KvDType
from opsin_server.engine.running.cuda_graphs import DecodeGraphs
from opsin_server.engine.startup.memory_plan import ResolvedConfig
from opsin_server.engine.startup.warmup import warmup
from opsin_server.ipc.memory_messages import AdapterRoom, MemoryLedger
from opsin_server.ipc.messages import Sampling
from support import absent_gpu, adapters, engines, oracle, tiny
from support.engines import Asked

IMAGE = tiny.IMAGE_TOKEN
DRAWN = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.2, seed=3)
MIX = [
    Asked([IMAGE, 6, 7], [oracle.picture(0, 60, 90)], count=3),
    Asked(list(range(4, 140)) * 9, count=3, sampling=DRAWN),
    Asked([9, IMAGE, 8, IMAGE, 6], [oracle.picture(1, 25, 60), oracle.picture(2, 33, 33)], count=2),
    Asked([5], count=3, sampling=DRAWN),
]


def made(family: str, directory: Path, form: str = "dense") -> oracle.Ours:
    """form: of the weights; with " w8a8" activations are in 8 bits, too."""
    oracle.saved(tiny.FAMILIES[family].make(), directory)
    name, both = form.removesuffix(" w8a8"), form.endswith(" w8a8")
    activations = ActivationPolicy(frozenset({"int8", "fp8"}), always=True) if both else ActivationPolicy()
    policy = WeightPolicy(name, vision=True, activations=activations)
    return oracle.load(directory, policy, dtype=torch.bfloat16)


def start(ours: oracle.Ours, slots: int = 0, kv_dtype: KvDType = "auto") -> None:
    memory = MemoryLedger(0, (), 256, 256, 16, AdapterRoom(slots, 16, slots))
    resolved = ResolvedConfig(torch.device("cpu"), torch.bfloat16, 2000, 64, 4096, 64, memory)
    warmup(
        ours.model,
        ours.architecture,
        linears_of(ours.spec, Registry()),
        EngineConfig(model="", kv_dtype=kv_dtype),
        resolved,
    )


QUANTIZED = {"multiply", "add_parts", "dequantize_rows"}
W8A8 = {"multiply_codes", "finish_sums", "code_rows"}


@pytest.mark.parametrize(
    ("family", "form", "kv_dtype"),
    [
        *((name, "dense", "auto") for name in tiny.FAMILIES),
        ("qwen2_vl", "int4", "auto"),
        ("qwen2_vl", "int8", "int8"),
        ("qwen2_vl", "fp8", "fp8"),
        ("qwen2_vl", "int8 w8a8", "auto"),
    ],
)
def test_requests_find_every_kernel_compiled(
    family: str, form: str, kv_dtype: KvDType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In prompts of all lengths, alone and together, in recorded steps and not, with few processors and with many."""
    ours = made(family, tmp_path, form)
    with absent_gpu.pretended(90, monkeypatch) as gpu:
        start(ours, kv_dtype=kv_dtype)
        assert {"attend", "merge", "draw_rows", "penalize_places", "turn_and_store"} <= set(gpu.launched)
        assert form == "dense" or set(gpu.launched) >= QUANTIZED
        assert "w8a8" not in form or set(gpu.launched) >= W8A8
        gpu.specialised.clear()
        for processors, recorded in ((4, False), (132, True)):
            gpu.launched.clear()
            monkeypatch.setattr(attention_shapes, "processors_of", lambda device, n=processors: n)
            engine = engines.make_engine(
                ours, blocks=128, block_size=16, max_context=1300, max_batch_tokens=500, dtype=torch.bfloat16,
                kv_dtype=kv_dtype,
            )  # fmt: skip
            runner = engine.runner
            if recorded:
                runner.graphs = DecodeGraphs(ours.model, runner.pool, 16, 1300, lambda run: run, runner.cross_kv)
                runner.graphs.prepare()
            mix = [asked for asked in MIX if ours.spec.vision is not None or not asked.images]
            assert [a.error for a in engines.ask(engine, ours, mix)] == [None] * len(mix)
            assert {"attend", "draw_rows", "penalize_places"} <= set(gpu.launched)
            products = {"multiply_codes", "code_rows"} if "w8a8" in form else {"multiply", "dequantize_rows"}
            assert form == "dense" or products <= set(gpu.launched)
        assert not gpu.specialised


@pytest.mark.parametrize(("family", "form"), [("qwen2_vl", "dense"), ("mllama", "dense"), ("mllama", "fp8 w8a8")])
def test_requests_with_adapters_find_every_kernel_compiled(
    family: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps of few rows and of many, recorded and not, of a model's language side and of its tower."""
    ours = made(family, tmp_path, form)
    refs = [None] + [adapters.write(tmp_path / f"{n}.safetensors", adapters.random(ours, 2 + n, n)) for n in range(2)]
    with absent_gpu.pretended(90, monkeypatch) as gpu:
        start(ours, slots=2)
        gpu.specialised.clear()
        for processors, recorded in ((4, False), (132, True)):
            gpu.launched.clear()
            monkeypatch.setattr(attention_shapes, "processors_of", lambda device, n=processors: n)
            engine = engines.make_engine(
                ours, blocks=256, block_size=16, max_context=1300, max_batch_tokens=500, dtype=torch.bfloat16,
                adapter_slots=2,
            )  # fmt: skip
            runner = engine.runner
            if recorded:
                runner.graphs = DecodeGraphs(
                    ours.model, runner.pool, 16, 1300, lambda run: run, runner.cross_kv, runner.adapters
                )
                runner.graphs.prepare()
            for number in range(6):
                long = Asked(list(range(4, 4 + 90)), count=6)  # (some steps have decoding rows alone)
                pictured = Asked([IMAGE, 6, 7 + number], [oracle.picture(number, 60, 90)], count=2)
                engines.submit(engine, ours, f"long {number}", long, adapter=refs[number % 3])
                engines.submit(engine, ours, f"pictured {number}", pictured, adapter=refs[number % 3])
            answers: dict[str, engines.Answer] = {}
            while engine.sequences:  # (an engine that only waits for adapters is not busy)
                answers |= engines.run(engine)
            assert {answer.error for answer in answers.values()} == {None}
            assert {"attend", "shrink", "expand"} <= set(gpu.launched)
            assert form == "dense" or {"multiply_codes", "code_rows"} <= set(gpu.launched)
        assert not gpu.specialised


def test_a_kernel_that_the_start_did_not_compile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = made("llava", tmp_path)
    with absent_gpu.pretended(90, monkeypatch) as gpu:
        start(ours)
        gpu.specialised.clear()
        engine = engines.make_engine(ours, block_size=8, dtype=torch.bfloat16)  # pages of another size
        engines.ask(engine, ours, [Asked([5, 6], count=2)])
        assert gpu.specialised


@pytest.mark.parametrize("chip", [80, 90, 120])
def test_training_compiles(chip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(6, 48).bfloat16().requires_grad_(), torch.randn(48).bfloat16().requires_grad_()
    floor, table = torch.tensor(1e-6), torch.randn(6, 8).bfloat16()
    with absent_gpu.pretended(chip, monkeypatch) as gpu:
        added, normed = norms.add_rms_norm(x, x * 2, weight, floor)
        heads = (added * normed).view(6, 6, 8).clone()
        rotary.rotate_(heads, table, table)
        activations.gated(heads.view(6, 48), "silu").sum().backward()
        norms.rms_norm(x, weight.detach(), floor, one_plus=True).sum().backward()
        head, labels = torch.randn(70, 48).bfloat16(), torch.arange(6)
        linear_cross_entropy(x, head, labels)[0].sum().backward()
        linear_cross_entropy(x.detach(), head, labels)
    backward = ["activate_backward", "turn_and_store", "rms_norm_rows_backward", "rms_norm_rows_backward"]
    assert [name for name in gpu.launched if "backward" in name or "turn" in name][1:] == backward
    assert gpu.launched[-2:] == ["cross_entropy_rows"] * 2
