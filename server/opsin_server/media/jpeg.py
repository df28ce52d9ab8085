"""JPEG: tables, frame and scans up to the end of the first picture; profiles, comments and what follows stay behind."""

import re
import struct

from opsin_server.media.encoded_image import EncodedImage, invalid
from opsin_server.media.orientation import read_orientation

# A progressive scan of a few bytes still costs a pass over the whole picture: 35 ms at 40 million pixels. Encoders
# write about ten.
MAX_SCANS = 32
# Tables, application segments of 64 KB, scans: a real file has tens.
MAX_SEGMENTS = 4096

SIGNATURE = b"\xff\xd8\xff"
# Neither a stuffed zero nor a restart: these lie within scans.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_COMMENT = 0xFE
_APP0, _APP1, _APP14, _APP15 = 0xE0, 0xE1, 0xEE, 0xEF


def read_jpeg(data: bytes) -> EncodedImage:
    view = memoryview(data)
    parts: list[bytes | memoryview] = [b"\xff\xd8"]
    exif = b""
    size: tuple[int, int] | None = None
    scans = 0
    at = 2
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None:
            raise invalid("The JPEG is truncated")
        kind = marker[1][0]
        if scans:  # the compressed pixels up to here
            parts.append(view[at : marker.start()])
        if kind == _END:
            break
        at = marker.end()
        if kind in (_START, 0x01):  # these two carry no length
            continue
        (length,) = struct.unpack_from(">H", data, at)
        body, at = data[at : at + length], at + length
        if length < 2 or at > len(data):
            raise invalid("The JPEG is truncated")
        if kind in _FRAMES:
            if size is not None:
                raise invalid("The JPEG has two frame headers")
            height, width = struct.unpack_from(">HH", body, 3)
            size = width, height
        scans += kind == _SCAN
        if scans > MAX_SCANS:
            raise invalid(f"The JPEG has more than {MAX_SCANS} scans")
        if kind == _APP1 and body[2:8] == b"Exif\0\0":
            exif = exif or body[2:]
        elif _is_needed(kind, body):
            parts += [marker[0], body]
    else:
        raise invalid(f"The JPEG has more than {MAX_SEGMENTS:,} segments")
    if size is None or not scans:
        raise invalid("The JPEG holds no picture")
    return EncodedImage("JPEG", *size, b"".join([*parts, b"\xff\xd9"]), read_orientation(exif))


def _is_needed(kind: int, body: bytes) -> bool:
    if kind == _APP0:
        return body[2:7] == b"JFIF\0"  # with Adobe's, tells YCbCr from RGB and CMYK from YCCK
    if kind == _APP14:
        return body[2:7] == b"Adobe"
    return not (_APP0 <= kind <= _APP15 or kind == _COMMENT)
