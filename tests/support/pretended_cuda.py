"""A CUDA device that is not here, pretended on a CPU: tensors say that they are on it, and what a GPU would refuse is
refused. The arithmetic is real, kernels are interpreted, so that results can be compared.

Refused are: tensors of the CPU and of the device in one operation (a number excepted), or given to a kernel; copies
from the device that the host does not wait for; and within a recording whatever gives the host a number, moves memory
that is not pinned, or has a shape that depends on values. A recording replays the operations as they were recorded, on
the tensors that they were recorded with: what Python computed meanwhile is not computed again, as on a GPU. Gradients
cannot be had: torch's engine for them wants a driver.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
MOVES = {"copy_", "_to_copy"}
HOST_INDEX = {"index", "index_put_", "_index_put_impl_"}  # these move indices to the device themselves, and wait
NUMBERS = (
    Tensor.tolist, Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__, Tensor.__repr__,
)  # fmt: skip
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave", "equal", "is_nonzero")


class DeviceTensor(Tensor):
    """A tensor on the device; `inner` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=CUDA,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return DEVICE.run(func, args, kwargs or {})


def inner(x: Any) -> Any:
    return x.inner if isinstance(x, DeviceTensor) else x


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is aten.mm.dtype:  # a product of 16 bit with a wider result, which a CPU does not have
        a, b, dtype = args
        return a.to(dtype) @ b.to(dtype)
    return func(*args, **kwargs)


class Pretended:
    """What happens on the device."""

    def __init__(self) -> None:
        self.tape: list[Callable[[], object]] | None = None  # while something is recorded
        self.pinned: weakref.WeakSet[Any] = weakref.WeakSet()
        self.launched: list[str] = []
        self.recordings = 0
        self.late: list[tuple[Tensor, Tensor]] = []  # pinned memory of the host, and what will have been copied there

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        placed = any(isinstance(x, DeviceTensor) for x in tensors)
        target = kwargs.get("device")
        if target is not None:
            target = torch.device(target)
            kwargs["device"] = CPU
        if name in ("pin_memory", "_pin_memory"):
            return self._pin(args[0])
        pinned = kwargs.pop("pin_memory", None)
        to_device = target.type == "cuda" if target is not None else placed
        if name == "copy_":
            to_device = isinstance(args[0], DeviceTensor)
        late = bool(kwargs.get("non_blocking", False)) or (name == "copy_" and args[2:] == (True,))
        if late and name == "copy_" and placed and not to_device and self.is_pinned(args[0]) and self.tape is None:
            return self._copy_late(args[0], args[1])
        self._check(name, tensors, placed, to_device, late)
        if placed_generator(kwargs) is False and to_device:
            raise RuntimeError("expected a 'cuda' device type for generator but found 'cpu'")
        if name == "_fused_sdp_choice":
            return 0  # the plain form, which is made of other operations
        a, k = tree_map(inner, args), tree_map(inner, kwargs)
        with _disable_current_modes():
            out = computed(func, a, k)
        if self.tape is not None and (placed or to_device):
            self._record(func, a, k, out)
        if pinned:
            self.pinned.add(out.untyped_storage())
        returned = func._schema.returns
        if len(returned) == 1 and returned[0].alias_info is not None and returned[0].alias_info.is_write:
            return args[0]
        return tree_map(lambda x: DeviceTensor(x) if isinstance(x, Tensor) else x, out) if to_device else out

    def _pin(self, x: Tensor) -> Tensor:
        with _disable_current_modes():
            out = x.clone()
        self.pinned.add(out.untyped_storage())
        return out

    def _copy_late(self, host: Tensor, x: DeviceTensor) -> Tensor:
        """Until somebody waits for it the host sees nothing of it."""
        with _disable_current_modes():
            self.late.append((host, x.inner.clone()))
            host.fill_(torch.iinfo(host.dtype).min if not host.is_floating_point() else torch.nan)
        return host

    def arrive(self, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        with _disable_current_modes():
            for host, value in copies:
                host.copy_(value)
        self.late = [copy for copy in self.late if all(copy is not other for other in copies)]

    def number(self, x: DeviceTensor) -> Tensor:
        """On the host, which waits for it."""
        if self.tape is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return x.inner

    def is_pinned(self, x: Tensor) -> bool:
        return x.untyped_storage() in self.pinned

    def _check(self, name: str, tensors: Sequence[Tensor], placed: bool, to_device: bool, late: bool) -> None:
        host = [x for x in tensors if not isinstance(x, DeviceTensor)]
        recording = self.tape is not None
        if placed and name not in MOVES and any(x.dim() for x in host) and name not in HOST_INDEX:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        if recording and placed and (any(word in name for word in WAITS) or (host and name in HOST_INDEX)):
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        if name in MOVES and placed and not to_device:
            if recording:
                raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
            if late:
                raise RuntimeError(f"{name}: the host would read what the device has not written yet")
        if name in MOVES and to_device and recording and any(x.untyped_storage() not in self.pinned for x in host):
            raise RuntimeError(f"{name}: cannot copy between CPU and CUDA tensors during capture unless pinned")

    def _record(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        assert self.tape is not None
        returned = func._schema.returns
        aliases = [r.alias_info for r in returned]
        if aliases and all(a is not None and not a.is_write for a in aliases):
            return  # a view: the same memory
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]

        def again() -> None:
            found = computed(func, args, kwargs)
            if not any(a is not None for a in aliases):
                for old, new in zip(results, (x for x in tree_leaves(found) if isinstance(x, Tensor)), strict=True):
                    old.copy_(new)

        self.tape.append(again)

    def launch(self, run: Callable[..., object], name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor) and not isinstance(x, DeviceTensor):
                raise ValueError(f"{name}: Pointer argument cannot be accessed from Triton (cpu tensor?)")
        a, k = [inner(x) for x in args], {key: inner(x) for key, x in kwargs.items()}
        self.launched.append(name)
        with _disable_current_modes():
            run(*a, **k)
        if self.tape is not None:
            self.tape.append(lambda: run(*a, **k))


DEVICE = Pretended()


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return DEVICE.run(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What goes past the operations, or asks for a driver before them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(indexed, args), tree_map(indexed, kwargs or {})
        if func is Tensor.copy_ and any(isinstance(x, DeviceTensor) for x in args):
            late = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
            return DEVICE.run(aten.copy_.default, (*args[:2], late), {})
        if args and isinstance(args[0], DeviceTensor):
            if func is Tensor.__getitem__:
                return picked(args[0], args[1])
            if func is Tensor.__setitem__:
                return put(args[0], args[1], args[2])
            if func in NUMBERS:
                return func(DEVICE.number(args[0]), *args[1:])
            if func is Tensor.__invert__:
                return torch.bitwise_not(args[0])
            if func in (Tensor.nonzero, torch.nonzero):
                return DEVICE.run(aten.nonzero.default, args[:1], {})
            if func is Tensor.data_ptr:
                return inner(args[0]).data_ptr()
        if func in (torch.tensor, torch.as_tensor, torch.scalar_tensor) and on_cuda(kwargs.get("device")):
            return func(*args, **(kwargs | {"device": CPU})).to(CUDA)
        if func is Tensor.is_pinned:
            return DEVICE.is_pinned(args[0])
        return func(*args, **kwargs)


def placed_generator(kwargs: dict[str, Any]) -> bool | None:
    """Whether the generator that was given is the device's; None without one."""
    generator = kwargs.get("generator")
    return None if generator is None else generator.device.type == "cuda"


def indexed(x: Any) -> Any:
    return CUDA if isinstance(x, torch.device) and x.type == "cuda" else x


def on_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def parts(x: Tensor, index: Any) -> tuple[Tensor, list[Any]]:
    """Integers, slices, None and dots as views; what is left are tensors, one a dimension."""
    index = list(index) if isinstance(index, tuple) else [index]
    used = sum(
        i.dim() if isinstance(i, Tensor) and i.dtype == torch.bool else i is not None and i is not ... for i in index
    )
    if ... in [i for i in index if not isinstance(i, Tensor)]:
        at = next(n for n, i in enumerate(index) if i is ...)
        index[at : at + 1] = [slice(None)] * (x.dim() - used)
    dim, left = 0, []
    for i in index:
        if i is None:
            x, dim, left = x.unsqueeze(dim), dim + 1, [*left, None]
        elif isinstance(i, int) and not isinstance(i, bool):
            x = x.select(dim, i)
        elif isinstance(i, slice):
            x = x if i == slice(None) else aten.slice.Tensor(x, dim, i.start, i.stop, i.step or 1)
            dim, left = dim + 1, [*left, None]
        else:
            i = i if isinstance(i, Tensor) else torch.tensor(i)
            dim, left = dim + 1, [*left, i]
    return x, left if any(i is not None for i in left) else []


def picked(x: Tensor, index: Any) -> Tensor:
    x, left = parts(x, index)
    return aten.index.Tensor(x, left) if left else x.view_as(x)


def put(x: Tensor, index: Any, value: Any) -> None:
    x, left = parts(x, index)
    value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=x.dtype)
    if left:
        aten.index_put_.default(x, left, value.to(x.device))
    else:
        DEVICE.run(aten.copy_.default, (x, value), {})


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, *args: object) -> None:
        self.tape: list[Callable[[], object]] = []

    def replay(self) -> None:
        with _disable_current_modes():
            for step in self.tape:
                step()


@contextmanager
def graph(recorded: Graph, pool: object = None, stream: object = None, **options: object) -> Iterator[None]:
    """torch.cuda.graph."""
    assert DEVICE.tape is None
    DEVICE.tape = []
    DEVICE.recordings += 1
    try:
        yield
        recorded.tape = DEVICE.tape
    finally:
        DEVICE.tape = None


class Event:
    """torch.cuda.Event; a millisecond lies between any two."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing
        self._before: list[tuple[Tensor, Tensor]] = []

    def record(self) -> None:
        self._before = list(DEVICE.late)

    def synchronize(self) -> None:
        DEVICE.arrive(self._before)

    def elapsed_time(self, other: Event) -> float:
        assert self.enable_timing
        assert other.enable_timing
        return 1.0


class Stream:
    def wait_stream(self, other: Stream) -> None: ...


@contextmanager
def _stream(stream: Stream) -> Iterator[None]:
    yield


GPU = SimpleNamespace(multi_processor_count=132, total_memory=141 * 10**9, name="NVIDIA H200")
STAND_INS: dict[str, Any] = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "_lazy_init": lambda: None,
    "current_device": lambda: 0,
    "device_count": lambda: 1,
    "set_device": lambda device: None,
    "synchronize": lambda *device: DEVICE.arrive(DEVICE.late),
    "empty_cache": lambda: None,
    "mem_get_info": lambda *device: (10**9, 141 * 10**9),
    "get_device_name": lambda *device: GPU.name,
    "get_device_properties": lambda *device: GPU,
    "get_device_capability": lambda *device: (9, 0),
    "graph_pool_handle": lambda: (0, 1),
    "current_stream": lambda *device: Stream(),
    "Stream": Stream,
    "stream": _stream,
    "Event": Event,
    "CUDAGraph": Graph,
    "graph": graph,
}


@contextmanager
def pretended() -> Iterator[Pretended]:
    """Within it torch has a CUDA device. Triton must be interpreted."""
    from triton.runtime.interpreter import GridExecutor

    from opsin_kernels import dispatch
    from opsin_kernels.gpu import attention_shapes

    execute = GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        DEVICE.launch(lambda *a, **k: execute(self, *a, **k), self.fn.__name__, args, kwargs)

    before = DEVICE.launched, DEVICE.recordings
    DEVICE.launched, DEVICE.recordings = [], 0
    for kept in (attention_shapes.processors_of, attention_shapes.name_of):
        kept.cache_clear()
    with ExitStack() as stack:
        for name, stand_in in STAND_INS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(GridExecutor, "__call__", call))
        stack.enter_context(mock.patch.object(dispatch, "forced", return_value=None))
        stack.enter_context(mock.patch.object(dispatch, "INTERPRETED", False))
        stack.enter_context(Operations())
        stack.enter_context(Functions())
        try:
            yield DEVICE
        finally:
            DEVICE.launched, DEVICE.recordings = before
            for kept in (attention_shapes.processors_of, attention_shapes.name_of):
                kept.cache_clear()
