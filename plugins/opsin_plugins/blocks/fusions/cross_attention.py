"""cross_attention: some decoder layers attend to visual tokens instead of the prompt. Source: arXiv 2407.21783 §7.

Keys and values are made once an image and kept; a token that sees no image passes these layers unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opsin_kernels.cross_attention import cross_attention
from opsin_kernels.row_codes import RowCodes
from opsin_plugins.blocks.fusion import Context, CrossInputs, Fusion
from opsin_plugins.blocks.layers import GatedMLP, RMSNorm, parameter
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.spec import DecoderSpec, ModelSpec


class CrossAttention(nn.Module):
    """No rotary embedding; queries and keys are normalised per head."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        self.q = Linear(spec.width, [spec.heads * spec.head_dim])
        self.kv = Linear(spec.width, [spec.kv_heads * spec.head_dim] * 2)
        self.q_norm, self.k_norm = (RMSNorm(spec.head_dim, spec.norm_eps) for _ in range(2))
        self.out = Linear(spec.heads * spec.head_dim, [spec.width])

    def keys_values(self, tokens: Tensor, lora: Lora | None) -> Tensor:
        """Visual tokens [M, H] -> [M, 2K, D], keys first."""
        k, v = self.kv(tokens, lora).view(len(tokens), 2 * self.kv_heads, self.head_dim).chunk(2, 1)
        return torch.cat([self.k_norm(k), v], 1)

    def forward(self, x: Tensor | RowCodes, inputs: CrossInputs, rows: Tensor, lora: Lora | None) -> Tensor:
        """rows [P, 2K, D]: the keys and values that the runs' slots point into."""
        q = self.q_norm(self.q(x, lora).view(len(x), self.heads, self.head_dim))
        return self.out(cross_attention(q, rows, inputs.runs), lora)


class CrossLayer(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = (RMSNorm(spec.width, spec.norm_eps) for _ in range(2))
        self.attention = CrossAttention(spec)
        self.mlp = GatedMLP(spec.width, spec.mlp, spec.activation, spec.mlp_bias)
        self.attention_gate, self.mlp_gate = parameter(1), parameter(1)

    def forward(self, x: Tensor, inputs: CrossInputs, rows: Tensor, lora: Lora | None) -> Tensor:
        normed = self.attention_norm.as_rows(x, self.attention.q.row_form(lora))
        x = x + self.attention_gate.tanh() * self.attention(normed, inputs, rows, lora)
        added = self.mlp(self.mlp_norm.as_rows(x, self.mlp.gate_up.row_form(lora)), lora)
        if inputs.before is not None:
            added = added.masked_fill(inputs.before[:, None], 0.0)
        return x + self.mlp_gate.tanh() * added


class CrossAttentionFusion(Fusion):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.cross = nn.ModuleDict({str(i): CrossLayer(spec) for i in spec.replaced})
        self._number = {layer: n for n, layer in enumerate(spec.replaced)}

    def keys_values(self, tokens: Tensor, lora: Lora | None = None) -> list[Tensor]:
        """What each cross layer keeps of visual tokens [M, H]: [M, 2K, D], in the order of `DecoderSpec.replaced`."""
        return [_of(layer).attention.keys_values(tokens, lora) for layer in self.cross.values()]

    def replace_layer(self, layer: int, x: Tensor, context: Context) -> Tensor:
        inputs = context.cross
        if inputs is None:
            return x
        cross = _of(self.cross[str(layer)])
        if inputs.pool is not None:
            rows = inputs.pool[self._number[layer]]
        else:
            assert inputs.states is not None
            rows = cross.attention.keys_values(inputs.states, inputs.lora_of_states)
        if inputs.rows is None:
            after = cross(x, inputs, rows, context.lora)
            return after if inputs.sees is None else torch.where(inputs.sees[:, None], after, x)
        return x.index_copy(0, inputs.rows, cross(x.index_select(0, inputs.rows), inputs, rows, inputs.lora))


def _of(layer: nn.Module) -> CrossLayer:
    assert isinstance(layer, CrossLayer)
    return layer


def build(spec: ModelSpec) -> Fusion:
    return CrossAttentionFusion(spec.decoder)
