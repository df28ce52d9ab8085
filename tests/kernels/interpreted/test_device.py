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


@pytest.mark.parametrize("model", ["Qwen2-VL-2B-Instruct", "Llama-3.2-11B-Vision-Instruct"])
def test_models_give_the_definitions_tokens(model: str, gpu: Pretended, bench: None) -> None:
    """Prompts are taken in by steps that are launched anew, decode steps are recorded ones."""
    from device import Device
    from engine_check import compared

    found = compared(model, Device(tiny=True), True, MIX, count=3, sequences=2, context=100)
    assert found["answers"] == 2 * len(MIX)
    assert {"attend", "rms_norm_rows", "turn_and_store", "draw_rows", "penalize_places"} <= set(gpu.launched)
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
    files = [f"tests/kernels/interpreted/test_{name}.py" for name in ("bitmask", "penalties", "sampling")]
    wanted = "inverse or places or (whose_bit and 31) or rows_are_their_own"
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


def test_memory_is_pinned_before_it_is_copied_while_recording(gpu: Pretended) -> None:
    host, x = torch.ones(3).pin_memory(), on_device(3)
    assert host.is_pinned()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.copy_(host, non_blocking=True)
    host.fill_(4)
    graph.replay()
    assert x.tolist() == [4.0] * 3
