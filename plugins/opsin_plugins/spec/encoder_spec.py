"""What a vision encoder claims of published checkpoints, so that one from anywhere composes by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EncoderSpec:
    """model_types: of the vision configurations that the encoder reads. Two encoders that claim one are an error.

    A checkpoint of one of `checkpoint_types` holds the tower beside other things: its configuration is the checkpoint's
    `vision_config`, and `prefix` stands before the tower's canonical names (a checkpoint of the tower alone may have
    the prefix or not).

    left_out: names without the prefix, in the pattern of weight rules, which a composed model does not have: pooling
    heads, projections, buffers. without_left_out: fields that its vision configuration then needs. image_processor:
    the settings that an image processor's file may leave out, `image_processor_type` among them.

    attention, mlp: patterns over canonical names of the linears that adapters may change, `{i}` for the layer's number;
    "": the tower has none. selects_layer: whether `VisionEncoder.spec` heeds `feature_layer`, the layer whose output is
    taken (-1: the last), in its configuration; else the features are always those of the last layer.

    not_composed: why no LLaVA can be made with the encoder; "": one can.
    """

    model_types: tuple[str, ...] = ()
    checkpoint_types: tuple[str, ...] = ()
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    without_left_out: Mapping[str, object] = field(default_factory=dict)
    image_processor: Mapping[str, object] = field(default_factory=dict)
    attention: str = ""
    mlp: str = ""
    selects_layer: bool = False
    not_composed: str = ""
