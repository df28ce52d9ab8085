"""One picture still encoded: what every container reader returns, and how a bad one is refused."""

from dataclasses import dataclass
from typing import Literal

from opsin_server.errors import BadRequest
from opsin_server.media.media_kind import IMAGE
from opsin_server.media_limits import MediaLimits


@dataclass(frozen=True)
class EncodedImage:
    """The first frame of an image as a small file of its own: no text, no profile, no Exif, no further frames.

    `width` and `height` are in pixels as the header has them, before Exif turns the picture.
    """

    format: Literal["PNG", "JPEG", "WEBP", "GIF"]
    width: int
    height: int
    data: bytes
    orientation: int = 1  # Exif's, 1 to 8


def check_size(still: EncodedImage, limits: MediaLimits) -> None:
    pixels = still.width * still.height
    size = f"{still.width} x {still.height}"
    if pixels == 0:
        raise invalid(f"The image is {size} pixels")
    if pixels > limits.max_image_pixels:
        limit = f"{limits.max_image_pixels:,} (--max-image-pixels)"
        raise IMAGE.too_large(f"The image is {size} = {pixels:,} pixels; the limit is {limit}")


def invalid(message: str) -> BadRequest:
    return IMAGE.invalid(message)
