"""GIF: screen, palette and first frame; the comments and extensions before it stay behind."""

import struct

from opsin_server.media.encoded_image import EncodedImage, invalid

# Before the first frame stand a loop count, perhaps a comment. Blocks are at most 255 bytes, so 16 MB an extension.
MAX_EXTENSIONS = 32
MAX_BLOCKS = 65_536

SIGNATURES = (b"GIF87a", b"GIF89a")
_EXTENSION, _IMAGE = 0x21, 0x2C
_GRAPHIC_CONTROL = 0xF9


def read_gif(data: bytes) -> EncodedImage:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    screen = at = 13 + _palette_bytes(flags)
    control = b""
    for _ in range(MAX_EXTENSIONS):
        if data[at] == _IMAGE:
            break
        if data[at] != _EXTENSION:
            raise invalid("The GIF holds no picture")
        start, at = at, _after_blocks(data, at + 2)
        if data[start + 1] == _GRAPHIC_CONTROL:  # which colour is transparent
            control = data[start:at]
    else:
        raise invalid(f"The GIF has more than {MAX_EXTENSIONS} extensions before its first frame")
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
    # A frame may reach beyond the screen; Pillow grows the picture then.
    size = max(width, left + frame_width), max(height, top + frame_height)
    if frame_width == 0 or frame_height == 0:
        size = 0, 0
    # The frames after the first need not be found and cut off: the decoder stops where its picture is full.
    return EncodedImage("GIF", *size, b"".join((data[:screen], control, memoryview(data)[at:])))


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    for _ in range(MAX_BLOCKS):
        size = data[at]
        at += 1 + size
        if size == 0:
            return at
    raise invalid(f"The GIF has an extension of more than {MAX_BLOCKS:,} blocks")
