"""Fusion strategies, registered by name: their torch-free halves. What each does is in the file of its name."""

from opsin_plugins.spec import API_VERSION, Linears, LinearShape, ModelSpec
from opsin_plugins.spec.linears import mlp_linears, under


class Scatter:
    """Visual tokens take the places of the prompt's placeholders."""

    api_version = API_VERSION
    name = "scatter"
    builder = "opsin_plugins.blocks.fusions.scatter:build"


class Levels:
    """Like scatter, and features of earlier tower layers are added after the first decoder layers."""

    api_version = API_VERSION
    name = "levels"
    builder = "opsin_plugins.blocks.fusions.levels:build"


class CrossAttention:
    """Some decoder layers attend to the visual tokens, which stand outside of the prompt."""

    api_version = API_VERSION
    name = "cross_attention"
    builder = "opsin_plugins.blocks.fusions.cross_attention:build"

    def linears(self, spec: ModelSpec) -> Linears:
        decoder = spec.decoder
        query, key_value = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
        layer = {
            "attention.q": LinearShape(decoder.width, (query,)),
            "attention.kv": LinearShape(decoder.width, (key_value, key_value)),
            "attention.out": LinearShape(query, (decoder.width,)),
            **under("mlp", mlp_linears(decoder.width, decoder.mlp, decoder.width, gated=True)),
        }
        return {name: shape for i in decoder.replaced for name, shape in under(f"cross.{i}", layer).items()}
