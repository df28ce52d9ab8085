"""WebP: canvas and first frame; profiles, metadata and further frames stay behind."""

import struct

from opsin_server.media.encoded_image import EncodedImage, invalid
from opsin_server.media.orientation import read_orientation

# Counts an animation's frames too: a minute at 60 a second is 3,600.
MAX_CHUNKS = 50_000

_KEPT = frozenset({b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"})


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_webp(data: bytes) -> EncodedImage:
    stop = 8 + int.from_bytes(data[4:8], "little")
    if stop > len(data):
        raise invalid("The WEBP is truncated")
    first: dict[bytes, bytes] = {}
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > stop:
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        at += 8
        if at + length > stop:
            raise invalid("The WEBP is truncated")
        if kind in _KEPT or kind == b"EXIF":
            first.setdefault(kind, data[at : at + length])
        at += length + length % 2
    else:
        raise invalid(f"The WEBP has more than {MAX_CHUNKS:,} chunks")
    exif = first.pop(b"EXIF", b"")
    body = b"".join(
        part
        for kind, chunk in first.items()
        for part in (kind, struct.pack("<I", len(chunk)), chunk, b"\0" * (len(chunk) % 2))
    )
    whole = b"".join((b"RIFF", struct.pack("<I", 4 + len(body)), b"WEBP", body))
    return EncodedImage("WEBP", *_size(first), whole, read_orientation(exif))


def _size(chunks: dict[bytes, bytes]) -> tuple[int, int]:
    """Of the canvas, or of the picture where there is no canvas. libwebp allocates it before it looks at a frame."""
    if extended := chunks.get(b"VP8X"):
        width, width_high, height, height_high = struct.unpack_from("<HBHB", extended, 4)
        return 1 + width + (width_high << 16), 1 + height + (height_high << 16)
    if lossless := chunks.get(b"VP8L"):
        (bits,) = struct.unpack_from("<I", lossless, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if lossy := chunks.get(b"VP8 "):
        width, height = struct.unpack_from("<HH", lossy, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise invalid("The WEBP holds no picture")
