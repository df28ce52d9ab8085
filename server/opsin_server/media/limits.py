"""What a request's images may cost."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from re import compile as regex

# Pillow warns above this many pixels; staying below leaves its process-wide switch alone and its warning unreachable.
PILLOW_PIXELS = 89_478_485

_HOST = regex(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@dataclass(frozen=True)
class MediaLimits:
    """Limits of one server. Raises ValueError, naming the flag, for a value that cannot be meant."""

    max_image_bytes: int = 20 * 2**20  # --max-image-bytes
    max_image_pixels: int = 40_000_000  # --max-image-pixels
    max_images: int = 32  # --max-images, per request
    max_request_pixels: int = 160_000_000  # --max-request-pixels, summed over a request's images
    fetch_timeout: float = 10.0  # --media-timeout, seconds for a whole fetch
    allow: tuple[str, ...] = ()  # --media-allow HOST|CIDR: private addresses that may be fetched

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


def parse_allow(entry: str) -> IPv4Network | IPv6Network | str:
    """One --media-allow entry: a network ("10.1.0.0/16", "10.1.2.3", "[::1]") or a host name in lower case."""
    name = entry.strip().lower().removesuffix(".")
    try:
        return ip_network(name.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        if "/" not in name and _HOST.fullmatch(name):
            return name
        raise ValueError(f"--media-allow {entry!r} is no host name, address or CIDR: {error}") from None
