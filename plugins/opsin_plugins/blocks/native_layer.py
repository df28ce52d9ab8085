"""Decoder layers as C on a processor takes them, whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opsin_kernels.cpu.layer import LayerSizes, NativeLayer
from opsin_plugins.spec import DecoderSpec

if TYPE_CHECKING:
    from opsin_plugins.blocks.decoder import DecoderLayer


def layer_sizes(spec: DecoderSpec) -> LayerSizes:
    return LayerSizes(spec.heads, spec.kv_heads, spec.head_dim, spec.width, spec.mlp)


def native_layer(layer: DecoderLayer, spec: DecoderSpec) -> NativeLayer | None:
    """None: a part of it is none that C knows."""
    attention, mlp, sizes = layer.attention, layer.mlp, layer_sizes(spec)
    linears = (attention.qkv, attention.out, mlp.gate_up, mlp.down)
    weights = tuple(found for linear in linears if (found := linear.stored.native()) is not None)
    if mlp.activation != "silu" or not sizes.fit or len(weights) < len(linears):
        return None
    heads = (None if norm is None else norm.weight for norm in (attention.q_norm, attention.k_norm))
    norms = (layer.attention_norm.weight, layer.mlp_norm.weight, *heads, layer.attention_norm.floor)
    return NativeLayer(sizes, weights, tuple(linear.bias for linear in linears), norms)
