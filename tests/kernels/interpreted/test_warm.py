"""After the made-up requests of a start, no request needs a kernel that is not compiled yet.

A kernel is compiled anew for every constant, number type, alignment to 16 and integer that is 1 or divisible by 16,
save where the kernel says that it is not to be; those keys are noted here for each launch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from opsin_kernels.gpu import attention
from opsin_server.config import EngineConfig
from opsin_server.engine.memory import Resolved, visual_token_bytes
from opsin_server.engine.warm import warm
from opsin_server.ipc.messages import MemoryUse, Sampling
from support import engines, oracle, tiny
from support.engines import Asked

IMAGE = tiny.IMAGE_TOKEN
Key = tuple[str, tuple[tuple[str, object], ...]]


def key_of(kernel: InterpretedFunction, args: tuple, options: dict[str, Any]) -> Key:
    signature = inspect.signature(kernel.fn)
    launch = {n: options.pop(n) for n in ("num_warps", "num_stages") if n in options}
    bound = signature.bind(*args, **options).arguments
    plain = set(kernel.kwargs.get("do_not_specialize") or ())
    unaligned = set(kernel.kwargs.get("do_not_specialize_on_alignment") or ())
    found: list[tuple[str, object]] = sorted(launch.items())
    for name, value in bound.items():
        if "constexpr" in str(signature.parameters[name].annotation) or value is None:
            found.append((name, value))
        elif isinstance(value, torch.Tensor):
            found.append((name, (value.dtype, name in unaligned or value.data_ptr() % 16 == 0)))
        elif isinstance(value, int):
            found.append((name, None if name in plain else (value == 1, value % 16 == 0)))
        else:
            found.append((name, type(value)))
    return kernel.fn.__name__, tuple(found)


@contextmanager
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Key]]:
    keys: set[Key] = set()
    run = InterpretedFunction.run

    def noting(kernel: InterpretedFunction, *args: object, grid: object, warmup: bool, **options: object):
        keys.add(key_of(kernel, args, dict(options)))
        if kernel.fn.__name__ in ("attend", "merge", "turn_and_store"):  # what they compute takes long, and no one asks
            bound = inspect.signature(kernel.fn).bind_partial(*args).arguments
            return bound["out_ptr"].zero_() if "out_ptr" in bound else None
        return run(kernel, *args, grid=grid, warmup=warmup, **options)

    with monkeypatch.context() as patch:
        patch.setattr(InterpretedFunction, "run", noting)
        yield keys


def start(ours: oracle.Ours) -> None:
    memory = MemoryUse(0, 0, 256, 16, 2**20, 0)
    per_token = visual_token_bytes(ours.spec, 4)
    resolved = Resolved(torch.device("cpu"), torch.float32, 2000, 64, 4096, per_token, memory, 256)
    warm(ours.model, ours.architecture, ours.spec, EngineConfig(model=""), resolved)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "mllama"])
def test_requests_need_no_kernel_that_a_start_has_not_compiled(family: str, tmp_path, monkeypatch) -> None:
    ours = oracle.saved(tiny.FAMILIES[family].make(), tmp_path)
    with noted(monkeypatch) as compiled:
        start(ours)
    assert {"attend", "merge", "draw_rows", "penalize_places", "turn_and_store"} <= {name for name, _ in compiled}
    drawn = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.2, seed=3)
    mix = [
        Asked([IMAGE, 6, 7], [oracle.picture(0, 60, 90)], count=3),
        Asked(list(range(4, 140)) * 3, count=3, sampling=drawn),
        Asked([9, IMAGE, 8, IMAGE, 6], [oracle.picture(1, 25, 60), oracle.picture(2, 33, 33)], count=2),
        Asked([5], count=3, sampling=drawn),
    ]
    engine = engines.make_engine(ours, blocks=128, block_size=16, max_context=600, max_batch_tokens=150)
    with noted(monkeypatch) as needed:
        assert all(a.error is None for a in engines.ask(engine, ours, mix))
        monkeypatch.setattr(attention, "_processors", lambda device: 132)  # a GPU's: keys are split more often
        assert all(a.error is None for a in engines.ask(engine, ours, mix))
    assert needed <= compiled, needed - compiled


def test_every_form_is_left_when_the_start_fails() -> None:
    with pytest.raises(RuntimeError, match="on purpose"), attention.every_form():
        raise RuntimeError("on purpose")
    assert not attention._every_form
