"""PNG: the chunks that make the picture, checked and joined; text, profiles and APNG frames stay behind."""

import struct
from zlib import crc32

from opsin_server.media.encoded_image import EncodedImage, invalid
from opsin_server.media.orientation import read_orientation

# Encoders write 8 KB or more to an IDAT chunk, so 20 MB make 2,500; a million empty ones only burn time.
MAX_CHUNKS = 50_000

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"})


def read_png(data: bytes) -> EncodedImage:
    view = memoryview(data)
    first: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    at = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, at)
        body, end = at + 8, at + 12 + length
        if end > len(data):
            raise invalid("The PNG is truncated")
        if kind in _KEPT:
            if crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
                raise invalid("The PNG is damaged: a checksum does not match")
            if kind == b"IDAT":
                pixels.append(view[body : end - 4])
            else:
                first.setdefault(kind, data[body : end - 4])
        if kind == b"IEND":
            break
        at = end
    else:
        raise invalid(f"The PNG has more than {MAX_CHUNKS:,} chunks")
    header = first.get(b"IHDR", b"")
    width, height, depth, color = struct.unpack_from(">IIBB", header)
    parts = [SIGNATURE, *_chunk(b"IHDR", header)]
    if b"PLTE" in first:
        parts += _chunk(b"PLTE", first[b"PLTE"])
    if b"tRNS" in first:
        parts += _chunk(b"tRNS", _transparency(first[b"tRNS"], depth, color))
    parts += [*_chunk(b"IDAT", *pixels), *_chunk(b"IEND")]
    return EncodedImage("PNG", width, height, b"".join(parts), read_orientation(first.get(b"eXIf", b"")))


def _chunk(kind: bytes, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    checksum = crc32(kind)
    for part in parts:
        checksum = crc32(part, checksum)
    return [struct.pack(">I", sum(map(len, parts))), kind, *parts, struct.pack(">I", checksum)]


def _transparency(key: bytes, depth: int, color: int) -> bytes:
    """The key colour on the scale of the samples that Pillow makes: it rescales those, but not the key."""
    if color == 0 and depth in (2, 4):
        return bytes((0, (key[1] & (2**depth - 1)) * (255 // (2**depth - 1))))
    if color == 2 and depth == 16:
        return bytes((0, key[0], 0, key[2], 0, key[4]))
    return key
