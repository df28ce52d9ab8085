"""The engine, the benchmark and the kernels' own tests on a pretended CUDA device, which refuses what a GPU refuses and
replays what was recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from opsin_kernels import linear_cross_entropy as losses
from opsin_plugins.blocks.adapter_slots import AdapterSlots, AdapterWeights
from opsin_plugins.blocks.slot_lora import Run, SlotLora
from opsin_plugins.conformance.adapters import random_adapter
from opsin_plugins.spec import LinearShape
from support import bfloat16
from support.pretended_cuda import Pretended, pretended

ROOT = Path(__file__).resolve().parents[3]
MIX = ((4, 64), (3, 0))  # tokens, edge of the picture


@pytest.fixture
def gpu() -> Iterator[Pretended]:
    with torch.no_grad(), bfloat16.right(), pretended() as device:
        yield device


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


QWEN, LLAMA = "Qwen2-VL-2B-Instruct", "Llama-3.2-11B-Vision-Instruct"


@pytest.mark.parametrize(
    ("model", "form", "kv_dtype"),
    [
        (QWEN, "dense", "auto"),
        (LLAMA, "dense", "int8"),
        (QWEN, "int4", "auto"),
        (QWEN, "int8", "int8"),
        (QWEN, "fp8", "fp8"),
        (QWEN, "int8 w8a8", "auto"),
        pytest.param(QWEN, "fp8 w8a8", "auto", marks=pytest.mark.nightly),
    ],
)
def test_models_give_the_definitions_tokens(model: str, form: str, kv_dtype: str, gpu: Pretended, bench: None) -> None:
    """Prompts are taken in by steps that are launched anew, decode steps are recorded ones."""
    from device import Device
    from engine_check import compared

    found = compared(
        model, Device(tiny=True), True, MIX, count=3, sequences=2, context=100, form=form, kv_dtype=kv_dtype
    )
    assert found["answers"] == 2 * len(MIX)
    assert {"attend", "rms_norm_rows", "turn_and_store", "draw_rows", "penalize_places"} <= set(gpu.launched)
    assert ("multiply" in gpu.launched) == (form != "dense")
    assert ("multiply_codes" in gpu.launched) == ("w8a8" in form)
    assert gpu.recordings >= 2


def test_the_benchmark_brings_every_row_of_a_model(
    gpu: Pretended, bench: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import engine
    import rows
    from gpu_plan import QWEN_7B, model_rows

    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["engine.py", QWEN_7B, "--tiny", "--rows", str(path)])
    engine.main()
    done = rows.succeeded(rows.read(path))
    assert tuple(done) == model_rows(QWEN_7B), rows.failures(rows.read(path))
    assert done[model_rows(QWEN_7B)[0]]["device"]["name"] == "nvidia-h200"
    assert gpu.recordings >= 2


def test_native_tests_make_every_tensor_on_the_device() -> None:
    names = ("bitmask", "linear_cross_entropy", "lora", "penalties", "quantized_linear", "sampling", "w8a8")
    files = [f"tests/kernels/interpreted/test_{name}.py" for name in names]
    wanted = "inverse or places or (whose_bit and 31) or rows_are_their_own or (own_adapter and few)"
    wanted += " or (at_the_step and 4097) or equally_likely or beside_its_rows or normal_numbers or not_a_token"
    wanted += " or zero_in_four or codes_of_a_gate or however_it_is_computed"
    line = [sys.executable, "-m", "pytest", "-q", "-p", "support.on_pretended_cuda", "-k", wanted, *files]
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "HYPOTHESIS_PROFILE": "default"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


def on_device(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device="cuda")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: on_device(3) + torch.ones(3), "same device"),
        (lambda: on_device(3).index_select(0, torch.tensor([1])), "same device"),
        (lambda: on_device(3).to("cpu", non_blocking=True), "not written yet"),
        (lambda: torch.randn(3, device="cuda", generator=torch.Generator()), "generator"),
    ],
)
def test_what_a_gpu_refuses_is_refused(wrong: Callable[[], object], message: str, gpu: Pretended) -> None:
    with pytest.raises(RuntimeError, match=message):
        wrong()


def test_a_kernel_takes_no_tensor_of_the_host(gpu: Pretended) -> None:
    from opsin_kernels.gpu import rms_norm as norms

    with pytest.raises(ValueError, match="cpu tensor"):
        norms.rms_norm(on_device(2, 8), torch.ones(8), torch.tensor(1e-6, device="cuda"))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x.cpu(),
        lambda x: x[torch.tensor([0])],
    ],
)
def test_what_a_recording_cannot_hold_is_refused(wrong: Callable[[torch.Tensor], object], gpu: Pretended) -> None:
    x = on_device(3)
    with pytest.raises(RuntimeError, match="captur"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        wrong(x)


def test_a_recording_replays_what_was_recorded(gpu: Pretended) -> None:
    """On its tensors as they are now, with the host's numbers as they were then."""
    x, out, factor = on_device(3), on_device(3), 2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_((x * factor)[1:].sum() + x)
    x.fill_(5)
    factor = 7
    graph.replay()
    assert out.tolist() == [25.0] * 3
    assert factor == 7


@pytest.mark.parametrize(
    ("runs", "launched"),
    [
        ([(1, 3), (2, 4), (0, 5), (1, 300)], True),
        ([(2, 1)], True),
        ([(1, 600), (0, 9), (2, 20)], False),
        ([(0, 5)], False),
    ],
)
def test_long_runs_of_adapters_are_the_librarys(runs: list[tuple[int, int]], launched: bool, gpu: Pretended) -> None:
    """Whichever way, each row gets what its adapter adds."""
    shape, name, place = LinearShape(32, (16, 24)), "layer", torch.device("cuda")
    made = [random_adapter({name: shape}, 3 + n, n)[name] for n in range(2)]
    slots = AdapterSlots({name: shape}, 2, 8, place)
    for number, factors in enumerate(made, 1):
        slots.load(number, AdapterWeights({name: factors}))
    rows = [slot for slot, count in runs for _ in range(count)]
    x, out = torch.randn(len(rows), 32), torch.randn(len(rows), 40)
    lora = SlotLora(slots, tuple(Run(*run) for run in runs))
    found = lora.add(name, x.to(place), out.to(place)).cpu()
    assert gpu.launched == (["shrink", "expand"] if launched else [])
    for row, slot in enumerate(rows):
        factors = [] if slot == 0 else made[slot - 1]
        added = torch.cat([x[row] @ f.a.T @ f.b for f in factors] or [torch.zeros(40)])
        assert torch.allclose(found[row], out[row] + added, atol=1e-4)


def test_a_recording_adds_whatever_adapters_its_rows_have_later(gpu: Pretended) -> None:
    """Other slots, other counts of rows, other adapters in the slots, of other ranks: with no launch of its own."""
    shape, name = LinearShape(48, (32, 16)), "layer"
    slots = AdapterSlots({name: shape}, 3, 8, torch.device("cuda"))
    chosen, x = torch.zeros(20, dtype=torch.int64, device="cuda"), on_device(20, 48)
    out, graph = on_device(20, 48), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        SlotLora(slots, None, chosen).add(name, x, out)
    assert gpu.launched == ["shrink", "expand"]
    for seed, mix in enumerate(([1, 2, 0, 2], [3], [0], [2, 0, 3, 3, 1])):
        torch.manual_seed(seed)
        loaded = [random_adapter({name: shape}, 1 + (seed + 3 * n) % 8, n)[name] for n in range(3)]
        for number, factors in enumerate(loaded, 1):
            given = [None if n == seed else f for n, f in enumerate(factors)]
            slots.load(number, AdapterWeights({name: given}))
        rows, given = [mix[n % len(mix)] for n in range(20)], torch.randn(20, 48)
        chosen.copy_(torch.tensor(rows))
        x.copy_(given)
        out.fill_(1)
        graph.replay()
        for row, slot in enumerate(rows):
            parts = [
                torch.zeros(n) if slot == 0 or segment == seed else given[row] @ f.a.T @ f.b
                for segment, (n, f) in enumerate(zip(shape.segments, loaded[slot - 1], strict=True))
            ]
            assert torch.allclose(out[row].cpu(), 1 + torch.cat(parts), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_loss_is_recorded_without_a_question_to_the_device(dtype: torch.dtype, gpu: Pretended) -> None:
    x, weight = on_device(3, 20).to(dtype), on_device(50, 20).to(dtype)
    labels, graph = torch.zeros(3, dtype=torch.int64, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = losses.linear_cross_entropy_with_gradient(x, weight, labels)
    assert gpu.launched == ["cross_entropy_rows"]
    torch.manual_seed(0)
    given = torch.randn(3, 20).to(dtype), torch.randn(50, 20).to(dtype), torch.tensor([0, 7, 49])
    for held, values in zip((x, weight, labels), given, strict=True):
        held.copy_(values)
    graph.replay()
    for ours, theirs in zip(found, losses.linear_cross_entropy_ref(*given), strict=True):
        assert torch.allclose(ours.cpu().float(), theirs.float(), atol=4e-2 if dtype != torch.float32 else 2e-5)


def test_memory_is_pinned_before_it_is_copied_while_recording(gpu: Pretended) -> None:
    host, x = torch.ones(3).pin_memory(), on_device(3)
    assert host.is_pinned()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.copy_(host, non_blocking=True)
    host.fill_(4)
    graph.replay()
    assert x.tolist() == [4.0] * 3
