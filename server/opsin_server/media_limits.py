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
    fetch_timeout: Annotated[
        Annotated[float, Meta(ge=0.1)], Option("Seconds to fetch one image.", name="media-timeout")
    ] = 10.0
    allow: Annotated[
        tuple[str, ...],
        Option("A private address that images may come from.", name="media-allow", metavar="HOST|CIDR"),
    ] = ()

    def __post_init__(self) -> None:
        for flag, value in (
            ("--max-image-bytes", self.max_image_bytes),
            ("--max-image-pixels", self.max_image_pixels),
            ("--max-images", self.max_images),
            ("--max-request-pixels", self.max_request_pixels),
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
