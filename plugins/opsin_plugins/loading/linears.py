"""All linears of a model, of its decoder, tower, projector and fusion. Nothing is built for it."""

from __future__ import annotations

import re

from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import LinearShape, ModelSpec
from opsin_plugins.spec.linears import under

# Layers of cross-attention ask what is kept of a picture; only their keys and values are part of it.
READS_PICTURES = re.compile(r"fusion\.cross\.\d+\.(attention\.(q|out)|mlp\.\w+)")


def linears_of(spec: ModelSpec, registry: Registry) -> dict[str, LinearShape]:
    """By the path in the model. Raises PluginError for an encoder or fusion that is not there."""
    found = under("decoder", spec.decoder.linears())
    if spec.vision is None:
        return found
    assert spec.encoder is not None
    assert spec.projector is not None
    assert spec.fusion is not None
    encoder, fusion = registry.encoder(spec.encoder), registry.fusion(spec.fusion)
    own = getattr(encoder, "linears", None)
    found |= under("vision", spec.vision.linears() if own is None else own(spec.vision))
    found |= under("projector", spec.projector.linears())
    of_fusion = getattr(fusion, "linears", None)
    return found if of_fusion is None else found | under("fusion", of_fusion(spec))


def shapes_pictures(name: str) -> bool:
    """Whether what is kept of a picture depends on this linear: visual tokens, or keys and values of cross-attention.
    Of a fusion that is not known here, every linear may."""
    return name.startswith(("vision.", "projector.", "fusion.")) and not READS_PICTURES.fullmatch(name)
