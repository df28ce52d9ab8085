"""The formats of quantized weights: codes of 4 or 8 bits, with scales of groups of inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from opsin_kernels import fp8_linear, int4_linear, int8_linear, table4_linear, w8a8_linear
from opsin_kernels.cpu.linear import NativeWeight
from opsin_kernels.cpu.native import can_run
from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.kv_rows import KINDS
from opsin_kernels.row_codes import RowCodes, quantize_rows
from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.weight_format import Dense, Form, Quantized, WeightFormat
from opsin_plugins.spec import CodeForm, SpecError

FINE = 128  # groups that are no larger have scales in 16 bit, where the model is in 16 bit: they would take a sixth

Stored = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Codes, scales, offsets and table of a weight, as `NativeWeight` takes them."""


class Groups(Quantized):
    """scale [outputs, groups]; offset the same, where there is one. order I32 [inputs]: how inputs are taken, where
    that is not in their own order."""

    scale: Tensor
    offset: Tensor | None
    order: Tensor | None

    def __init__(self, inputs: int, outputs: int, form: CodeForm) -> None:
        super().__init__(inputs, outputs)
        self.form = form
        self.row_kind = KINDS[form.codes] if form.activations else None
        groups, size = inputs // form.group, _scale_type(form)
        self.register_buffer("scale", torch.empty(outputs, groups, dtype=size))
        self.register_buffer("offset", torch.empty(outputs, groups, dtype=size) if form.offset else None)
        self.register_buffer("order", torch.empty(inputs, dtype=torch.int32) if form.ordered else None)

    def fill(self, start: int, weight: Tensor | Codes) -> None:
        found = weight if isinstance(weight, Codes) else self._quantize(weight.to(self.scale.device))
        rows = slice(start, start + len(found))
        self._store(rows, found)
        self.scale[rows] = found.scale
        if self.offset is not None:
            assert found.offset is not None
            self.offset[rows] = found.offset
        if self.order is not None:
            assert found.order is not None
            self.order.copy_(found.order)

    @abstractmethod
    def _quantize(self, weight: Tensor) -> Codes:
        """Rows that are floats."""

    @abstractmethod
    def _store(self, rows: slice, found: Codes) -> None:
        """The codes themselves."""

    @abstractmethod
    def _stored(self) -> Stored:
        """All of it."""

    @abstractmethod
    def _product(self, x: Tensor) -> Tensor:
        """Of inputs in the order of the codes."""

    @abstractmethod
    def _input_gradient(self, gradient: Tensor) -> Tensor:
        """Of inputs in the order of the codes."""

    @abstractmethod
    def _meant(self, chosen: Tensor | slice) -> Tensor:
        """Rows of the weight that is meant, inputs in the order of the codes."""

    def product(self, x: Tensor) -> Tensor:
        if self.row_kind is not None:
            return self.matmul_codes(quantize_rows(x, self.row_kind))
        if self.form.ordered:
            assert self.order is not None
            x = x.index_select(1, self.order)
        if uses_kernels(x):
            return self._product(x)
        native = self._found or self._look_up()
        return native.product(x) if native.fits and can_run(x) else self._product(x)

    def matmul_codes(self, rows: RowCodes, bias: Tensor | None = None) -> Tensor:
        codes, scale, *_ = self._stored()
        out = w8a8_linear.w8a8_linear(rows, codes, scale)
        return out if bias is None else out + bias

    def native(self) -> NativeWeight | None:
        if self.form.ordered or self.form.activations:
            return None
        found = self._found or self._look_up()
        return found if found.fits else None

    def _look_up(self) -> NativeWeight:
        self._found = NativeWeight(self.form.codes, *self._stored())
        return self._found

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return self._in_order(self._input_gradient(gradient))

    def dequantized(self) -> Tensor:
        return self._in_order(self._meant(slice(None)))

    def rows(self, ids: Tensor) -> Tensor:
        return self._in_order(self._meant(ids))

    def _in_order(self, values: Tensor) -> Tensor:
        if self.order is None:
            return values
        out = torch.empty_like(values)
        out[:, self.order.long()] = values
        return out


class Int8Groups(Groups):
    """quantized I8 [outputs, inputs]. Source: opsin_kernels.int8_linear. By default one group a row, symmetric."""

    name = "int8"
    quantized: Tensor

    def __init__(self, inputs: int, outputs: int, form: CodeForm | None = None) -> None:
        super().__init__(inputs, outputs, form or CodeForm("int8", inputs))
        self.register_buffer("quantized", torch.empty(outputs, inputs, dtype=torch.int8))

    def _quantize(self, weight: Tensor) -> Codes:
        return Codes(self.form, *int8_linear.quantize_rows(weight))

    def _store(self, rows: slice, found: Codes) -> None:
        self.quantized[rows] = found.codes

    def _stored(self) -> Stored:
        return self.quantized, self.scale, self.offset, None

    def _product(self, x: Tensor) -> Tensor:
        return int8_linear.int8_linear(x, self.quantized, self.scale, self.offset)

    def _input_gradient(self, gradient: Tensor) -> Tensor:
        return int8_linear.int8_input_gradient(gradient, self.quantized, self.scale, self.offset)

    def _meant(self, chosen: Tensor | slice) -> Tensor:
        offset = None if self.offset is None else self.offset[chosen]
        return int8_linear.dequantize(self.quantized[chosen], self.scale[chosen], offset, torch.get_default_dtype())


class Int4Groups(Groups):
    """packed U8 [outputs, inputs / 2]. Source: opsin_kernels.int4_linear. By default the largest group that divides the
    inputs."""

    name = "int4"
    packed: Tensor

    def __init__(self, inputs: int, outputs: int, form: CodeForm | None = None) -> None:
        group = next((group for group in int4_linear.GROUPS if inputs % group == 0), inputs)
        super().__init__(inputs, outputs, form or CodeForm("int4", group, offset=True))
        self.register_buffer("packed", torch.empty(outputs, inputs // 2, dtype=torch.uint8))

    @classmethod
    def holds(cls, inputs: int, outputs: int) -> bool:
        return any(inputs % group == 0 for group in int4_linear.GROUPS)

    def _quantize(self, weight: Tensor) -> Codes:
        return Codes(self.form, *int4_linear.quantize_groups(weight, self.form.group))

    def _store(self, rows: slice, found: Codes) -> None:
        self.packed[rows] = int4_linear.pack_groups(found.codes, self.form.group)

    def _stored(self) -> Stored:
        return self.packed, self.scale, self.offset, None

    def _product(self, x: Tensor) -> Tensor:
        assert self.offset is not None
        return int4_linear.int4_linear(x, self.packed, self.scale, self.offset)

    def _input_gradient(self, gradient: Tensor) -> Tensor:
        assert self.offset is not None
        return int4_linear.int4_input_gradient(gradient, self.packed, self.scale, self.offset)

    def _meant(self, chosen: Tensor | slice) -> Tensor:
        assert self.offset is not None
        dtype = torch.get_default_dtype()
        return int4_linear.dequantize_groups(self.packed[chosen], self.scale[chosen], self.offset[chosen], dtype)


class Fp8Groups(Groups):
    """quantized F8 (e4m3) [outputs, inputs]. Source: opsin_kernels.fp8_linear. By default one group a row."""

    name = "fp8"
    quantized: Tensor

    def __init__(self, inputs: int, outputs: int, form: CodeForm | None = None) -> None:
        super().__init__(inputs, outputs, form or CodeForm("fp8", inputs))
        self.register_buffer("quantized", torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn))

    def _quantize(self, weight: Tensor) -> Codes:
        return Codes(self.form, *fp8_linear.quantize_rows(weight))

    def _store(self, rows: slice, found: Codes) -> None:
        self.quantized[rows] = found.codes

    def _stored(self) -> Stored:
        return self.quantized, self.scale, None, None

    def _product(self, x: Tensor) -> Tensor:
        return fp8_linear.fp8_linear(x, self.quantized, self.scale)

    def _input_gradient(self, gradient: Tensor) -> Tensor:
        return fp8_linear.fp8_input_gradient(gradient, self.quantized, self.scale)

    def _meant(self, chosen: Tensor | slice) -> Tensor:
        return fp8_linear.dequantize(self.quantized[chosen], self.scale[chosen], torch.get_default_dtype())


class Table4Groups(Groups):
    """packed U8 [outputs, inputs / 2], table F32 [16]. Source: opsin_kernels.table4_linear. It is loaded, and nothing
    is quantized to it here."""

    name = "table4"
    packed: Tensor
    table: Tensor

    def __init__(self, inputs: int, outputs: int, form: CodeForm) -> None:
        super().__init__(inputs, outputs, form)
        self.register_buffer("packed", torch.empty(outputs, inputs // 2, dtype=torch.uint8))
        self.register_buffer("table", torch.empty(16, dtype=torch.float32))

    def _quantize(self, weight: Tensor) -> Codes:
        raise SpecError("nothing is quantized to a table of 16 numbers here")

    def _store(self, rows: slice, found: Codes) -> None:
        assert found.table is not None
        self.packed[rows] = int4_linear.pack_groups(found.codes, self.form.group)
        self.table.copy_(found.table)

    def _stored(self) -> Stored:
        return self.packed, self.scale, None, self.table

    def _product(self, x: Tensor) -> Tensor:
        return table4_linear.table4_linear(x, self.packed, self.scale, self.table)

    def _input_gradient(self, gradient: Tensor) -> Tensor:
        return table4_linear.table4_input_gradient(gradient, self.packed, self.scale, self.table)

    def _meant(self, chosen: Tensor | slice) -> Tensor:
        dtype = torch.get_default_dtype()
        return table4_linear.dequantize(self.packed[chosen], self.scale[chosen], self.table, dtype)


# What a weight can be quantized to on the spot.
FORMATS: Mapping[str, type[WeightFormat]] = {form.name: form for form in (Dense, Int8Groups, Int4Groups, Fp8Groups)}
_OF_CODES: Mapping[str, type[Groups]] = {
    "int4": Int4Groups,
    "int8": Int8Groups,
    "fp8": Fp8Groups,
    "table4": Table4Groups,
}


def form_of(form: CodeForm | None) -> Form:
    """What holds a checkpoint's codes as they are; None: numbers that are none."""
    return Dense if form is None else partial(_OF_CODES[form.codes], form=form)


def _scale_type(form: CodeForm) -> torch.dtype:
    small = form.codes != "fp8" and form.group <= FINE and torch.get_default_dtype() != torch.float32
    return torch.float16 if form.half or small else torch.float32
