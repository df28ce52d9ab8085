"""The plugin contract, api version 2: everything a third party imports, and nothing else.

A model family is an `Architecture`: a torch-free declaration. From a checkpoint's configuration it makes a frozen
`ModelSpec`; the host builds the one decoder and the one tower from it (`opsin_plugins.blocks`), serves and trains
them. What the two wings of the server exchange about a prompt (`VisualItem`, `Expanded`, positions) is numpy.
"""

from opsin_plugins.spec.base_types import (
    API_VERSION,
    I32,
    U8,
    Activation,
    Config,
    Encode,
    Grid,
    Norm,
    Pattern,
    SpecError,
)
from opsin_plugins.spec.dual_encoder_spec import DualEncoderSpec, TextTowerSpec
from opsin_plugins.spec.encoder_spec import EncoderSpec
from opsin_plugins.spec.linears import Linears, LinearShape, mlp_linears
from opsin_plugins.spec.model_files import ModelFiles, TensorInfo
from opsin_plugins.spec.model_spec import (
    CrossSpec,
    DecoderSpec,
    ImageSpec,
    LevelsProjectorSpec,
    ModelSpec,
    ProjectorSpec,
    ResamplerSpec,
    RopeScaling,
    RopeSpec,
    TiledTowerSpec,
    TowerSpec,
)
from opsin_plugins.spec.packing import CodeForm, Packing
from opsin_plugins.spec.protocols import Architecture, DualEncoder, FusionStrategy, TakesVideos, VisionEncoder
from opsin_plugins.spec.videos import Clip, VideoBudget, VideoPlan, VideoSource, VideoSpec
from opsin_plugins.spec.visual_items import Expanded, ImageBudget, Span, VisibleImages, VisualItem
from opsin_plugins.spec.weight_rules import Concat, Ignore, Prefix, PublishedNames, Rename, Reorder, Rule, Split

__all__ = [
    "API_VERSION",
    "I32",
    "U8",
    "Activation",
    "Architecture",
    "Clip",
    "CodeForm",
    "Concat",
    "Config",
    "CrossSpec",
    "DecoderSpec",
    "DualEncoder",
    "DualEncoderSpec",
    "Encode",
    "EncoderSpec",
    "Expanded",
    "FusionStrategy",
    "Grid",
    "Ignore",
    "ImageBudget",
    "ImageSpec",
    "LevelsProjectorSpec",
    "LinearShape",
    "Linears",
    "ModelFiles",
    "ModelSpec",
    "Norm",
    "Packing",
    "Pattern",
    "Prefix",
    "ProjectorSpec",
    "PublishedNames",
    "Rename",
    "Reorder",
    "ResamplerSpec",
    "RopeScaling",
    "RopeSpec",
    "Rule",
    "Span",
    "SpecError",
    "Split",
    "TakesVideos",
    "TensorInfo",
    "TextTowerSpec",
    "TiledTowerSpec",
    "TowerSpec",
    "VideoBudget",
    "VideoPlan",
    "VideoSource",
    "VideoSpec",
    "VisibleImages",
    "VisionEncoder",
    "VisualItem",
    "mlp_linears",
]
