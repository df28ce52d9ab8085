"""All linears of a model, of its decoder, tower, projector and fusion. Nothing is built for it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from opsin_plugins.loading.registry import PluginError, Registry
from opsin_plugins.spec import FusionStrategy, Linears, LinearShape, ModelSpec, VisionEncoder
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
    found |= under("vision", _listed(encoder, spec.vision, spec.vision.linears()))
    found |= under("projector", spec.projector.linears())
    return found | under("fusion", _listed(fusion, spec, {}))


def _listed(plugin: VisionEncoder | FusionStrategy, spec: object, otherwise: Linears) -> Linears:
    """What a plugin lists, if it does."""
    own = getattr(plugin, "linears", None)
    if own is None:
        return otherwise
    found = own(spec)
    if not isinstance(found, Mapping) or not all(isinstance(shape, LinearShape) for shape in found.values()):
        raise PluginError(
            f"{plugin.name!r}: linears gives a {type(found).__name__}, and not a LinearShape for each name"
        )
    return found


def shapes_pictures(name: str) -> bool:
    """Whether what is kept of a picture depends on this linear: visual tokens, or keys and values of cross-attention.
    Of a fusion that is not known here, every linear may."""
    return name.startswith(("vision.", "projector.", "fusion.")) and not READS_PICTURES.fullmatch(name)
