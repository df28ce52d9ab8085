"""What the process that decodes a video is asked, and what it says. A line of JSON each."""

from __future__ import annotations

import msgspec


class VideoFile(msgspec.Struct, frozen=True):
    """A file of `size` bytes, which follow. The rest are limits: pixels of a frame, frames and seconds of the file, and
    seconds for decoding it."""

    size: int
    max_pixels: int
    max_frames: int
    max_seconds: float
    timeout: float


class Probed(msgspec.Struct, frozen=True):
    """What is in the file. fault: a sentence why it is not decoded, or nothing; limit: whether it is for its size."""

    fault: str = ""
    limit: bool = False
    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0


class WantedFrames(msgspec.Struct, frozen=True):
    """The numbers of frames, none before the one in front of it, and the size that each is brought to. resample: PIL's
    number of the filter."""

    numbers: tuple[int, ...]
    height: int
    width: int
    resample: int


class Decoded(msgspec.Struct, frozen=True):
    """Before the bytes of each frame, U8 [height, width, 3]; before none where there is a fault."""

    fault: str = ""


video_file_of = msgspec.json.Decoder(VideoFile).decode
probed_of = msgspec.json.Decoder(Probed).decode
wanted_of = msgspec.json.Decoder(WantedFrames).decode
decoded_of = msgspec.json.Decoder(Decoded).decode
line_of = msgspec.json.encode  # (which writes no line's end)
