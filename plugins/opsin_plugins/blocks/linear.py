"""The one linear layer: a frozen weight in some format, a bias, and what the adapters of a batch add."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opsin_kernels.row_codes import RowCodes, RowForm
from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.weight_format import Form, WeightFormat


class Linear(nn.Module):
    """y = x · Wᵀ + bias. segments: output sizes, one a published layer that is fused here (q, k, v).

    It is declared by its shape. Its name (the path in the model, by which a Lora knows it) and its weight's format are
    given by `build_model`.
    """

    bias: nn.Parameter | None
    stored: WeightFormat

    def __init__(self, inputs: int, segments: Sequence[int], bias: bool = False) -> None:
        super().__init__()
        self.inputs, self.outputs, self.segments = inputs, sum(segments), tuple(segments)
        self.bias = nn.Parameter(torch.empty(self.outputs), requires_grad=False) if bias else None
        self.name = ""

    def allocate(self, name: str, form: Form) -> None:
        """Room for the weight, on the default device and in the default type."""
        self.name, self.stored = name, form(self.inputs, self.outputs)

    def forward(self, x: Tensor | RowCodes, lora: Lora | None = None) -> Tensor:
        """x [T, in] -> [T, out]. lora: the adapters of the batch's rows; None: all are the base model's."""
        if isinstance(x, RowCodes):
            out = self.stored.matmul_codes(x, self.bias)
            if lora is None:
                return out
            assert x.values is not None
            return lora.add(self.name, x.values, out)
        return self.stored.matmul(x, self.bias) if lora is None else lora.applied(self, x)

    def row_form(self, lora: Lora | None) -> RowForm | None:
        """As what the operation before this linear may hand it rows, since it quantizes them anyway; adapters want them
        as they are, too. None: as they are."""
        kind = self.stored.row_kind
        if kind is None or torch.is_grad_enabled() or not (lora is None or lora.takes_codes):
            return None
        return RowForm(kind, keep=lora is not None)

    def fill(self, tensors: Sequence[Tensor | Codes]) -> None:
        """Takes the published weights of all segments, in order; some families publish the fused tensor itself."""
        start = 0
        for tensor in tensors:
            self.stored.fill(start, tensor)
            start += len(tensor)
