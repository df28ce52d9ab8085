"""What differs between an image and a video while it is fetched: its words, and how large it may be."""

from __future__ import annotations

from dataclasses import dataclass

from opsin_server.errors import BadRequest
from opsin_server.media_limits import MediaLimits


@dataclass(frozen=True)
class MediaKind:
    """noun: also its type in a Content-Type. some: with its article. example: a type."""

    noun: str
    some: str
    example: str

    def max_bytes(self, limits: MediaLimits) -> int:
        return limits.max_video_bytes if self is VIDEO else limits.max_image_bytes

    def too_many_bytes(self, size: str, limits: MediaLimits) -> BadRequest:
        limit = f"{self.max_bytes(limits):,} (--max-{self.noun}-bytes)"
        return self.too_large(f"The {self.noun} is {size} bytes; the limit is {limit}")

    def too_large(self, message: str) -> BadRequest:
        if self is VIDEO:
            return BadRequest(message, code="video_too_large")
        return BadRequest(message, code="image_too_large")

    def invalid(self, message: str) -> BadRequest:
        if self is VIDEO:
            return BadRequest(message, code="invalid_video")
        return BadRequest(message, code="invalid_image")

    def refused(self, message: str) -> BadRequest:
        """Of a URL."""
        if self is VIDEO:
            return BadRequest(message, code="video_url_not_allowed")
        return BadRequest(message, code="image_url_not_allowed")

    def failed(self, message: str) -> BadRequest:
        """Of a fetch."""
        if self is VIDEO:
            return BadRequest(message, code="video_fetch_failed")
        return BadRequest(message, code="image_fetch_failed")


IMAGE = MediaKind("image", "an image", "image/png")
VIDEO = MediaKind("video", "a video", "video/mp4")
