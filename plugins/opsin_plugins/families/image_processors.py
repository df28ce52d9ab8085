"""The image and video processors of transformers that the built-in encoders implement, and how their settings are read.

A checkpoint's settings say which class made them (`image_processor_type`, `video_processor_type`). What they leave out
is that class's own default, whatever the model; null is no default but nothing: a step that is not done, a size that is
missing. A setting that changes pixels and is not implemented is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from opsin_plugins.families.config_fields import integer, number
from opsin_plugins.spec import Config, SpecError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# Settings of every class that change nothing here: pictures arrive as RGB, and each is prepared alone.
INERT = frozenset(
    {
        "image_processor_type",
        "video_processor_type",
        "feature_extractor_type",
        "processor_class",
        "auto_map",
        "do_convert_rgb",
        "default_to_square",
        "data_format",
        "input_data_format",
        "device",
        "return_tensors",
        "return_metadata",
        "video_metadata",
        "disable_grouping",
        "image_seq_length",
        "return_row_col_info",
        "vision_token_id",
        "_valid_processor_keys",
    }
)
# A setting nobody has heard of is passed over, as transformers does, unless its name speaks of pixels.
ABOUT_PIXELS = re.compile(r"^do_|size|crop|pad|pixel|resize|resample|rescale|mean|std|patch|tile|split|grid|edge|frame")


@dataclass(frozen=True)
class ImageProcessor:
    """One class of processors.

    names: its `image_processor_type`, without "Fast" or "Pil"; the first is its own, the others do the same to pixels.
    defaults: what its files may leave out. fixed: settings that are implemented with one value only, the default.
    kind: of what it prepares: "image" or "video".
    """

    names: tuple[str, ...]
    defaults: Mapping[str, object]
    fixed: Mapping[str, object] = field(default_factory=dict)
    kind: str = "image"

    @property
    def complete(self) -> Config:
        """Its name and its defaults."""
        return {f"{self.kind}_processor_type": self.names[0], **self.defaults}

    def resolve(self, settings: Config | None) -> Config:
        """The settings with every default filled in. Raises SpecError when there are none, when another class made
        them, or when they ask for what is not implemented."""
        if settings is None:
            raise SpecError(
                f"nothing says how pictures are prepared ({self.names[0]}): the directory has no "
                "preprocessor_config.json and no processor_config.json with an image_processor; copy the file from "
                "where the model came from"
            )
        self._check_type(settings)
        settings = {key: _whole(value) for key, value in settings.items()}
        given = {key: False if value is None and key.startswith("do_") else value for key, value in settings.items()}
        fixed = {"do_resize": True, "do_rescale": True, "do_normalize": True, **self.fixed}
        for key, value in given.items():
            if key in fixed and not _same(value, fixed[key]):
                raise SpecError(f"{self.kind} processor {key}: {value!r} is not supported ({fixed[key]!r} is)")
            if key not in (*fixed, *self.defaults, *INERT, "rescale_factor") and ABOUT_PIXELS.search(key) and value:
                raise SpecError(
                    f"{self.kind} processor {key}: {value!r} is not supported: {self.names[0]} has no such setting"
                )
        factor = number(given, "rescale_factor", 1 / 255)
        if abs(factor * 255 - 1) > 1e-6:
            raise SpecError(f"{self.kind} processor rescale_factor {factor} is not supported (1/255 is)")
        return {**self.defaults, **given}

    def _check_type(self, settings: Config) -> None:
        legacy = settings.get("feature_extractor_type")  # of files from before 2023
        said = settings.get(f"{self.kind}_processor_type") or (
            legacy.replace("FeatureExtractor", "ImageProcessor") if isinstance(legacy, str) else None
        )
        if said is None:
            return
        if not isinstance(said, str) or said.removesuffix("Fast").removesuffix("Pil") not in self.names:
            raise SpecError(
                f"{self.kind}_processor_type {said!r} is not supported for this model ({', '.join(self.names)})"
            )


def _whole(value: object) -> object:
    """Numbers that a program wrote as floats, as 336.0, are the integers that they are."""
    if isinstance(value, Mapping):
        return {name: _whole(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_whole, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _same(value: object, accepted: object) -> bool:
    return isinstance(value, bool) == isinstance(accepted, bool) and value == accepted


_SQUARE = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
_CLIP = {"resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, **_SQUARE}

CLIP = ImageProcessor(("CLIPImageProcessor", "LlavaImageProcessor"), _CLIP, {"do_pad": False})
SIGLIP = ImageProcessor(
    ("SiglipImageProcessor",),
    {"resample": 3, "image_mean": HALF, "image_std": HALF, "size": {"height": 224, "width": 224}},
    {"do_center_crop": False, "do_pad": False},
)
SIGLIP2 = ImageProcessor(
    ("Siglip2ImageProcessor",),
    {"resample": 2, "image_mean": HALF, "image_std": HALF, "patch_size": 16, "max_num_patches": 256},
    {"do_center_crop": False, "do_pad": False},
)
LLAVA_NEXT = ImageProcessor(
    ("LlavaNextImageProcessor",),
    {
        **_CLIP,
        "image_grid_pinpoints": ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
        "aspect_ratio_setting": "anyres",  # of the original code; transformers passes over it
        "do_pad": True,  # of a batch, which has one picture
    },
)
PIXTRAL = ImageProcessor(
    ("PixtralImageProcessor",),
    {
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "size": {"longest_edge": 1024},
        "patch_size": None,  # transformers' processor gives it anew
        "do_pad": True,  # of a batch, which has one picture
    },
    {"do_center_crop": False},
)
MLLAMA = ImageProcessor(
    ("MllamaImageProcessor",),
    {
        "resample": 2,
        "image_mean": HALF,
        "image_std": HALF,
        "size": {"height": 224, "width": 224},
        "max_image_tiles": 4,
    },
    {"do_pad": True, "do_center_crop": False},
)
QWEN2_VL = ImageProcessor(
    ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor"),  # the second for some weeks, in many copies of Qwen2.5-VL
    {
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
        "min_pixels": None,
        "max_pixels": None,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    },
    {"do_center_crop": False, "do_pad": False},
)
_QWEN_VIDEO = {
    "resample": 3,
    "min_pixels": None,
    "max_pixels": None,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "fps": None,
    "num_frames": None,
    "min_frames": 4,
    "max_frames": 768,
    "do_sample_frames": False,  # of a server nobody wants every frame: see `video_spec`
    "cap_pixels_per_frame": None,
    "use_token_compression": True,  # transformers passes over it
}
QWEN2_VL_VIDEO = ImageProcessor(
    ("Qwen2VLVideoProcessor", "Qwen2_5_VLVideoProcessor"),
    {
        **_QWEN_VIDEO,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
        "patch_size": 14,
        "max_video_tokens": 128000,
    },
    {"do_center_crop": False, "do_pad": False},
    "video",
)
QWEN3_VL_VIDEO = ImageProcessor(
    ("Qwen3VLVideoProcessor",),
    {
        **_QWEN_VIDEO,
        "image_mean": HALF,
        "image_std": HALF,
        "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
        "patch_size": 16,
        "fps": 2,
        "max_video_tokens": 768,
        "max_image_size": None,  # transformers passes over these two
        "max_duration": None,
    },
    {"do_center_crop": False, "do_pad": False},
    "video",
)
IDEFICS3 = ImageProcessor(
    ("Idefics3ImageProcessor", "SmolVLMImageProcessor"),
    {
        "resample": 1,
        "image_mean": HALF,
        "image_std": HALF,
        "size": {"longest_edge": 1456},
        "max_image_size": {"longest_edge": 364},
        "do_image_splitting": True,
        "do_pad": True,  # of a batch, which has one picture
    },
    {"do_center_crop": False},
)


def normalization(settings: Config) -> Config:
    """The part of resolved settings that a tower needs whose pictures a family prepares itself."""
    return {key: settings[key] for key in ("image_mean", "image_std")}


def resample_of(settings: Config) -> int:
    """PIL's number of the filter."""
    return integer(settings, "resample", least=0, most=5)


def edges(settings: Config, key: str, *, int_is_square: bool) -> Mapping[str, object]:
    """A size as its edges by name. A bare number is a square, or the shortest edge; a pair is height and width."""
    value = settings[key]
    if isinstance(value, Mapping):
        return {name: edge for name, edge in value.items() if edge is not None}
    if isinstance(value, int) and not isinstance(value, bool):
        return {"height": value, "width": value} if int_is_square else {"shortest_edge": value}
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    raise SpecError(f"image processor {key} {value!r} is no size")


def square(settings: Config, key: str, *, int_is_square: bool = True) -> int | None:
    """The side of a size that is a square; None for any other."""
    found = edges(settings, key, int_is_square=int_is_square)
    side = found.get("height")
    return side if isinstance(side, int) and side > 0 and found.get("width") == side else None


def edge(settings: Config, key: str, name: str, *, int_is_square: bool) -> int | None:
    """An edge of a size, as `shortest_edge`; None where the size does not have it."""
    value = edges(settings, key, int_is_square=int_is_square).get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise SpecError(f"image processor {key}.{name} must be an integer of at least 1, got {value!r}")
    return value
