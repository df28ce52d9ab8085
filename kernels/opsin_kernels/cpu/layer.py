"""A whole decoder layer of a decode step in one call of cpu/layer.c, which gives the very bits of its parts called one
after the other. What is no such step, or no such layer, goes through the parts."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from opsin_kernels.cpu.decode import POOLS
from opsin_kernels.cpu.linear import NativeWeight
from opsin_kernels.cpu.native import LANES, can_run, loaded
from opsin_kernels.layout import Layout

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


class _Layer(ctypes.Structure):
    """layer_t of the C source."""

    _fields_ = (
        *((name, _POINTER) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _POINTER) for name in ("qkv_bias", "out_bias", "gate_up_bias", "down_bias")),
        *((name, _POINTER) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm", "eps")),
        *((name, _COUNT) for name in ("heads", "kv_heads", "head", "width", "mlp")),
    )


class _Step(ctypes.Structure):
    """step_t of the C source."""

    _fields_ = (
        *((name, _POINTER) for name in ("scratch", "cos", "sin", "slots", "table", "lengths")),
        *((name, _COUNT) for name in ("rows", "pages", "block", "eight", "threads")),
    )


@dataclass(frozen=True)
class LayerSizes:
    """Of heads, and of rows: the model's width and the MLP's."""

    heads: int
    kv_heads: int
    head: int
    width: int
    mlp: int

    @property
    def fit(self) -> bool:
        return self.head % (2 * LANES) == 0 and self.width % LANES == 0 and self.mlp % LANES == 0

    @property
    def scratch(self) -> int:
        """Numbers that a layer makes of a row."""
        return 2 * self.width + (2 * self.heads + 2 * self.kv_heads) * self.head + 3 * self.mlp


class NativeStep:
    """What all layers of a decode step share."""

    def __init__(self, sizes: LayerSizes, cos: Tensor, sin: Tensor, layout: Layout, pool: Tensor) -> None:
        table, slots, rows = layout.block_table, layout.slots, len(layout.query_lengths)
        assert table is not None
        assert slots is not None
        lengths = layout.decode_lengths
        self._kept = (torch.empty(rows * sizes.scratch), cos.contiguous(), sin.contiguous(), slots, table, lengths)
        pointers = (part.data_ptr() for part in self._kept)
        counts = (rows, table.stride(0), pool.shape[1], pool.dtype == torch.int8, torch.get_num_threads())
        self._struct = _Step(*pointers, *counts)
        self.address = ctypes.addressof(self._struct)


def step_of(sizes: LayerSizes, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, pool: Tensor) -> NativeStep | None:
    """Of a batch whose rows are all the newest of their sequences; None: of another one."""
    table, slots = layout.block_table, layout.slots
    if table is None or slots is None or layout.given is not None or layout.decodes < len(layout.query_lengths):
        return None
    if not x.dtype == cos.dtype == torch.float32 or pool.dtype not in POOLS or not sizes.fit:
        return None
    numbers = all(part.dtype == torch.int64 and part.stride(-1) == 1 for part in (table, slots))
    there = can_run(x, cos, sin, table, slots, pool) and pool.is_contiguous() and x.is_contiguous()
    return NativeStep(sizes, cos, sin, layout, pool) if numbers and there else None


class NativeLayer:
    """Of a layer's very tensors; what they hold may change."""

    def __init__(
        self,
        sizes: LayerSizes,
        weights: tuple[NativeWeight, ...],
        biases: tuple[Tensor | None, ...],
        norms: tuple[Tensor | None, ...],
    ) -> None:
        """weights, biases: of qkv, out, gate_up and down. norms: before attention, before the MLP, of queries and of
        keys, and their epsilon [1]."""
        self._kept = (*weights, *biases, *norms)
        pointers = (None if part is None else part.data_ptr() for part in (*biases, *norms))
        self._struct = _Layer(*(w.address for w in weights), *pointers, *vars(sizes).values())
        self._address, self._function = ctypes.addressof(self._struct), loaded().decode_layer

    def run(self, x: Tensor, pool: Tensor, step: NativeStep) -> Tensor:
        """x [rows, width], which it changes and returns."""
        if not self._function(x.data_ptr(), pool.data_ptr(), self._address, step.address):
            raise MemoryError("there is no memory for the rows of a weight")
        return x
