"""Videos of a test's own, and transformers' processors of them without torchvision."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import Enum
from fractions import Fraction
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import av
import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor
from transformers import image_processing_backends, video_processing_utils

from opsin_plugins.families.images import resize
from opsin_plugins.spec import (
    U8,
    Architecture,
    Clip,
    ModelSpec,
    TakesVideos,
    TowerSpec,
    VideoBudget,
    VideoPlan,
    VideoSource,
    VisualItem,
)
from support.inputs import normalised


def frames(count: int, height: int, width: int, seed: int = 0) -> U8:
    """Smooth, so that a codec changes little: a light that wanders over a gradient of a colour."""
    generator = np.random.default_rng(seed)
    down, across = np.mgrid[:height, :width] / max(height, width)
    colour, place = generator.uniform(60, 180, 3), generator.uniform(0.2, 0.8, 2)
    made = []
    for number in range(count):
        angle = 2 * np.pi * number / max(count, 8)
        light = np.exp(
            -8 * ((down - place[0] - 0.2 * np.sin(angle)) ** 2 + (across - place[1] - 0.2 * np.cos(angle)) ** 2)
        )
        made.append((colour * (0.4 + 0.6 * across[..., None]) + 70 * light[..., None]).clip(0, 255))
    return np.stack(made).astype(np.uint8)


def encoded(
    pictures: U8, fps: int = 8, container: str = "mp4", codec: str = "libx264", turned: int = 0, **options: str
) -> bytes:
    """turned: by so many degrees the file says that a player has to turn it, against the clock."""
    out = BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if turned:
            stream.set_display_rotation(turned)
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return out.getvalue()


def joined(parts: Sequence[U8], size: tuple[int, int] | None = None) -> bytes:
    """Videos of several sizes behind each other in one H.264 stream. size: height and width by the file's header; None:
    those of the first."""
    packets = []
    for part in parts:
        encoder = av.CodecContext.create("libx264", "w")
        encoder.height, encoder.width, encoder.pix_fmt, encoder.framerate = *part.shape[1:3], "yuv420p", Fraction(8)
        encoder.options = {"bf": "0"}
        frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in part]
        packets += [bytes(packet) for frame in [*frames, None] for packet in encoder.encode(frame)]
    out = BytesIO()
    with av.open(out, "w", format="matroska") as file:
        stream = file.add_stream("libx264", rate=8)
        stream.height, stream.width = size or parts[0].shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base = Fraction(1, 8)
            file.mux(packet)
    return out.getvalue()


def decoded(data: bytes) -> U8:
    """Every frame, as transformers decodes them with PyAV."""
    with av.open(BytesIO(data)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def clip(pictures: U8, plan: VideoPlan, resample: int = 3) -> Clip:
    """What decoding makes of a plan."""
    return Clip(plan, np.stack([resize(pictures[i], plan.height, plan.width, resample) for i in plan.frames]))


def item(
    architecture: Architecture, spec: ModelSpec, pictures: U8, rate: float = 8.0, sampled: bool = False, **budget: Any
) -> VisualItem:
    assert isinstance(architecture, TakesVideos)
    source = VideoSource(len(pictures), rate, *pictures.shape[1:3], sampled)
    plan = architecture.plan_video(source, spec, VideoBudget(**budget))
    return architecture.preprocess_video(clip(pictures, plan), spec)


class _Interpolation(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def _resize(image: Tensor, size: Sequence[int], interpolation: _Interpolation, antialias: bool) -> Tensor:
    """As torchvision resizes bytes on a CPU: by torch's own kernel for them."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    flat = image.reshape(-1, *image.shape[-3:])
    return F.interpolate(flat, list(size), mode=interpolation.value, antialias=antialias).reshape(
        *image.shape[:-2], *size
    )


def _normalize(image: Tensor, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> Tensor:
    average, deviation = (torch.as_tensor(x, dtype=image.dtype)[:, None, None] for x in (mean, std))
    return (image - average) / deviation


def _functional() -> ModuleType:
    module: Any = ModuleType("torchvision.transforms.v2.functional")
    module.InterpolationMode, module.resize, module.normalize = _Interpolation, _resize, _normalize
    module.grayscale_to_rgb = lambda video: video
    return module


FUNCTIONAL = _functional()
PIL_FILTERS = {0: _Interpolation.NEAREST_EXACT, 2: _Interpolation.BILINEAR, 3: _Interpolation.BICUBIC}


def processor(family: str, **settings: Any) -> Any:
    """transformers' own of the family, with as much of torchvision as it calls."""
    owner = "qwen3_vl" if family == "qwen3_vl" else "qwen2_vl"
    names = ["torchvision", "torchvision.transforms", "torchvision.transforms.v2"]
    packages = {name: ModuleType(name) for name in names}
    packages[names[2]].functional = FUNCTIONAL  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {**packages, FUNCTIONAL.__name__: FUNCTIONAL}):
        module = import_module(f"transformers.models.{owner}.video_processing_{owner}")
    bases: tuple[Any, Any] = image_processing_backends, video_processing_utils
    bases[0].tvF = bases[1].tvF = FUNCTIONAL
    bases[0].pil_torch_interpolation_mapping = PIL_FILTERS
    made = {"qwen2_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor"}[owner]
    return getattr(module, made)(**settings)


def normalised_patches(mine: VisualItem, vision: TowerSpec) -> Tensor:
    """F32 [N, 3·T·p·p], as transformers' processors write them."""
    return normalised(mine, vision).unflatten(0, (-1, mine.patch_rows)).transpose(1, 2).flatten(1)


def whole_processor(directory: Path, family: str) -> Any:
    """transformers' processor of a directory: its tokenizer, and what prepares pictures and videos."""
    made = processor(family, **json.loads((directory / "video_preprocessor_config.json").read_text()))
    owner = {"qwen3_vl": hf.Qwen3VLProcessor}[family]

    class Whole(owner):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

    images = hf.AutoImageProcessor.from_pretrained(directory, backend="pil")
    return Whole(images, hf.AutoTokenizer.from_pretrained(directory), made)
