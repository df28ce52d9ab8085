"""An example of a plugin: Glimpse, a made-up family with a vision encoder and a fusion of its own."""

from opsin_plugins.spec import API_VERSION


class GatedScatter:
    """The torch-free half of the fusion: a name, and where its builder is."""

    api_version = API_VERSION
    name = "gated_scatter"
    builder = "opsin_glimpse.gated:build"
