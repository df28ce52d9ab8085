"""Fusion strategies, registered by name: their torch-free halves. What they do is in the file of that name."""

from opsin_plugins.spec import API_VERSION


class Scatter:
    """Visual tokens take the places of the prompt's placeholders."""

    api_version = API_VERSION
    name = "scatter"
    builder = "opsin_plugins.fusions.scatter:build"
