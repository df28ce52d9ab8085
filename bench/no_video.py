"""Lets transformers load the processor of Qwen2-VL without torchvision, which does not import beside the CPU torch.

Only its video half needs torchvision. `install` registers a placeholder for that half; pictures take the same path as
ever (the PIL image processor, to which AutoImageProcessor falls back by itself).
"""

from __future__ import annotations


class NoVideoProcessor:
    @classmethod
    def from_pretrained(cls, *args: object, **kwargs: object) -> None:
        return None


def install() -> None:
    """To be called before a processor is loaded. `no_video` must be importable under this name."""
    from transformers import processing_utils

    # What a video processor is checked against, and what loads one.
    setattr(processing_utils.transformers_module, "VideoProcessorMixin", object)  # noqa: B010
    names = processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING._MAPPING_NAMES
    names["video_processor"] = (__name__, NoVideoProcessor.__name__)
