"""Fusion strategies, registered by name: their torch-free halves. What each does is in the file of its name."""

from opsin_plugins.spec import API_VERSION


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
