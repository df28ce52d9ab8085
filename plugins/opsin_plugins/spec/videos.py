"""What a video is: how its frames are chosen and resized, before they become patches. No pixels are decoded here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opsin_plugins.spec.base_types import U8


@dataclass(frozen=True)
class VideoSpec:
    """How videos become frames and patches (resolved video processor). Part of every video's digest.

    sampling: "steps" takes frames at equal steps from the first one, a multiple of `temporal` of them; "ends" takes
    them evenly from the first to the last.
    budget: whether `min_pixels` and `max_pixels` are of each frame or of all of them together. frame_tokens: visual
    tokens that bound the pixels as well (`cap_pixels_per_frame`); 0: none do.
    ticks_per_second: steps of the time axis in a second of the video; 0: one step for each patch in time.
    """

    sampling: Literal["steps", "ends"]
    budget: Literal["frame", "video"]
    resample: int  # PIL's number
    patch: int
    merge: int
    temporal: int  # frames that one patch spans
    min_pixels: int
    max_pixels: int
    fps: float | None = None
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    frame_tokens: int = 0
    ticks_per_second: float = 0.0

    @property
    def factor(self) -> int:
        """Pixels of a visual token's side."""
        return self.patch * self.merge


@dataclass(frozen=True)
class VideoSource:
    """A video before frames are chosen. sampled: its frames were chosen by whoever sent them, and all are taken."""

    frames: int
    fps: float
    height: int
    width: int
    sampled: bool = False


@dataclass(frozen=True)
class VideoBudget:
    """What a request and the server's operator want of one video; None: what the model's own processor does.

    max_pixels: of a frame after resizing, total_pixels: of all frames together, as far as the smallest form allows.
    max_tokens: visual tokens past which it is refused.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class VideoPlan:
    """Which frames of a video are taken, and to which size they are brought. tokens: how many it becomes."""

    source: VideoSource
    frames: tuple[int, ...]
    height: int
    width: int
    tokens: int

    @property
    def sampled_fps(self) -> float:
        """Frames that are taken of each second."""
        return len(self.frames) / self.source.frames * self.source.fps


@dataclass(frozen=True)
class Clip:
    """A video as it is preprocessed: the frames of its plan, U8 [F, height, width, 3]."""

    plan: VideoPlan
    frames: U8
