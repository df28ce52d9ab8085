"""cross_attention: some decoder layers attend to visual tokens instead of the prompt. Source: arXiv 2407.21783 §7.

Keys and values are made once an image and kept; a token that sees no image passes these layers unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opsin_kernels.cross_attention import cross_attention
from opsin_plugins.blocks.fusion import Context, CrossInputs, Fusion
from opsin_plugins.blocks.layers import GatedMLP, RMSNorm, parameter
from opsin_plugins.blocks.linear import Linear, Quantize
from opsin_plugins.spec import DecoderSpec, ModelSpec


class CrossAttention(nn.Module):
    """No rotary embedding; queries and keys are normalised per head."""

    def __init__(self, spec: DecoderSpec, quantize: Quantize) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        self.q = Linear(spec.width, [spec.heads * spec.head_dim], bias=False, quantize=quantize)
        self.kv = Linear(spec.width, [spec.kv_heads * spec.head_dim] * 2, bias=False, quantize=quantize)
        self.q_norm, self.k_norm = (RMSNorm(spec.head_dim, spec.norm_eps) for _ in range(2))
        self.out = Linear(spec.heads * spec.head_dim, [spec.width], bias=False, quantize=quantize)

    def keys_values(self, tokens: Tensor) -> Tensor:
        """Visual tokens [M, H] -> [M, 2K, D], keys first."""
        k, v = self.kv(tokens).view(len(tokens), 2 * self.kv_heads, self.head_dim).chunk(2, 1)
        return torch.cat([self.k_norm(k), v], 1)

    def forward(self, x: Tensor, inputs: CrossInputs, rows: Tensor, slot: Tensor | None) -> Tensor:
        """rows [P, 2K, D]: the keys and values that the runs' slots point into."""
        q = self.q_norm(self.q(x, slot).view(len(x), self.heads, self.head_dim))
        return self.out(cross_attention(q, rows, inputs.runs), slot)


class CrossLayer(nn.Module):
    def __init__(self, spec: DecoderSpec, quantize: Quantize) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = (RMSNorm(spec.width, spec.norm_eps) for _ in range(2))
        self.attention = CrossAttention(spec, quantize)
        self.mlp = GatedMLP(spec.width, spec.mlp, spec.activation, spec.mlp_bias, quantize)
        self.attention_gate, self.mlp_gate = parameter(1), parameter(1)

    def forward(self, x: Tensor, inputs: CrossInputs, rows: Tensor, slot: Tensor | None) -> Tensor:
        x = x + self.attention_gate.tanh() * self.attention(self.attention_norm(x), inputs, rows, slot)
        added = self.mlp(self.mlp_norm(x), slot)
        if inputs.before is not None:
            added = added.masked_fill(inputs.before[:, None], 0.0)
        return x + self.mlp_gate.tanh() * added


class CrossAttentionFusion(Fusion):
    def __init__(self, spec: DecoderSpec, quantize: Quantize) -> None:
        super().__init__()
        self.cross = nn.ModuleDict({str(i): CrossLayer(spec, quantize) for i in spec.replaced})
        self._number = {layer: n for n, layer in enumerate(spec.replaced)}

    def keys_values(self, tokens: Tensor) -> list[Tensor]:
        """What each cross layer keeps of visual tokens [M, H]: [M, 2K, D], in the order of `DecoderSpec.replaced`."""
        return [_of(layer).attention.keys_values(tokens) for layer in self.cross.values()]

    def replace_layer(self, layer: int, x: Tensor, context: Context) -> Tensor:
        inputs = context.cross
        if inputs is None:
            return x
        cross = _of(self.cross[str(layer)])
        if inputs.pool is not None:
            rows = inputs.pool[self._number[layer]]
        else:
            assert inputs.states is not None
            rows = cross.attention.keys_values(inputs.states)
        if inputs.rows is None:
            after = cross(x, inputs, rows, context.adapter_slot)
            return after if inputs.sees is None else torch.where(inputs.sees[:, None], after, x)
        slot = None if context.adapter_slot is None else context.adapter_slot.index_select(0, inputs.rows)
        return x.index_copy(0, inputs.rows, cross(x.index_select(0, inputs.rows), inputs, rows, slot))


def _of(layer: nn.Module) -> CrossLayer:
    assert isinstance(layer, CrossLayer)
    return layer


def build(spec: ModelSpec, quantize: Quantize) -> Fusion:
    return CrossAttentionFusion(spec.decoder, quantize)
