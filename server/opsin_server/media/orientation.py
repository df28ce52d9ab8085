"""Exif's Orientation: how the camera was held."""

import struct

import numpy as np
import numpy.typing as npt

_TAG = 0x0112
_SHORT = 3


def read_orientation(exif: bytes) -> int:
    """1 to 8 from a TIFF block, after "Exif\\0\\0" or bare; 1 (as stored) where there is none that can be read.

    Read here and not by Pillow, which would parse every other tag too. A damaged Exif block does not cost the
    picture: browsers show it as stored as well.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == _TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def turn_upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """A view of [H, W, 3] pixels as the photographer saw them; 5 to 8 swap H and W."""
    if orientation >= 5:  # stored along the other diagonal
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
