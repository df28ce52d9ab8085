"""What a request's images may cost."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from re import compile as regex
from typing import Annotated

import msgspec
from msgspec import Meta

from opsin_server.option import Option

# Pillow warns above this many pixels; staying below leaves its process-wide switch alone and its warning unreachable.
PILLOW_PIXELS = 89_478_485

_HOST = regex(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class MediaLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one server. Raises ValueError, naming the flag, for a value that cannot be meant."""

    max_image_bytes: Annotated[Annotated[int, Meta(ge=1)], Option("One image file.", metavar="SIZE")] = 20 * 2**20
    max_image_pixels: Annotated[Annotated[int, Meta(ge=1)], Option("Pixels of one image.")] = 40_000_000
    max_images: Annotated[Annotated[int, Meta(ge=1)], Option("Images of a request.")] = 32
    max_request_pixels: Annotated[Annotated[int, Meta(ge=1)], Option("Pixels of all images of a request.")] = (
        160_000_000
    )
    max_videos: Annotated[Annotated[int, Meta(ge=0)], Option("Videos of a request; 0: none are taken.")] = 4
    max_video_images: Annotated[
        Annotated[int, Meta(ge=1)], Option("Pictures that a video may be sent as, each of which is a frame.")
    ] = 256
    max_video_bytes: Annotated[Annotated[int, Meta(ge=1)], Option("One video file.", metavar="SIZE")] = 40 * 2**20
    max_video_pixels: Annotated[Annotated[int, Meta(ge=1)], Option("Pixels of one frame of a video.")] = 8_847_360
    max_video_frames: Annotated[Annotated[int, Meta(ge=1)], Option("Frames of one video, taken or not.")] = 20_000
    max_video_seconds: Annotated[Annotated[float, Meta(ge=0.1)], Option("Duration of one video.")] = 600.0
    video_timeout: Annotated[Annotated[float, Meta(ge=0.1)], Option("Seconds of a core to decode one video.")] = 30.0
    fetch_timeout: Annotated[
        Annotated[float, Meta(ge=0.1)], Option("Seconds to fetch one image or video.", name="media-timeout")
    ] = 10.0
    allow: Annotated[
        tuple[str, ...],
        Option("A private address that images and videos may come from.", name="media-allow", metavar="HOST|CIDR"),
    ] = ()

    def __post_init__(self) -> None:
        for flag, value in (
            ("--max-image-bytes", self.max_image_bytes),
            ("--max-image-pixels", self.max_image_pixels),
            ("--max-images", self.max_images),
            ("--max-request-pixels", self.max_request_pixels),
            ("--max-video-images", self.max_video_images),
            ("--max-video-bytes", self.max_video_bytes),
            ("--max-video-pixels", self.max_video_pixels),
            ("--max-video-frames", self.max_video_frames),
            ("--max-video-seconds", self.max_video_seconds),
            ("--video-timeout", self.video_timeout),
            ("--media-timeout", self.fetch_timeout),
        ):
            if not value > 0:
                raise ValueError(f"{flag} is {value}; it must be above 0")
        if self.max_image_pixels > PILLOW_PIXELS:
            raise ValueError(f"--max-image-pixels is {self.max_image_pixels:,}; it can be at most {PILLOW_PIXELS:,}")
        for entry in self.allow:
            parse_allow(entry)


def parse_allow(entry: str, flag: str = "--media-allow") -> IPv4Network | IPv6Network | str:
    """One entry of such a list: a network ("10.1.0.0/16", "10.1.2.3", "[::1]") or a host name in lower case."""
    name = entry.strip().lower().removesuffix(".")
    try:
        return ip_network(name.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        if "/" not in name and _HOST.fullmatch(name):
            return name
        raise ValueError(f"{flag} {entry!r} is no host name, address or CIDR: {error}") from None
