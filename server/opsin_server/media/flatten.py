"""Any of Pillow's modes to plain RGB, whatever lies under transparency replaced by white."""

import numpy as np
import numpy.typing as npt
from PIL import Image

# Rows are converted in bands of about this many pixels: the copies in between stay in cache, and a picture of 40
# million pixels needs 120 MB beside its own and not 480.
BAND_PIXELS = 2**18


def flatten(image: Image.Image) -> npt.NDArray[np.uint8]:
    """U8 [H, W, 3], C-contiguous."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        out[top:bottom] = _rgb(image.crop((0, top, width, bottom)))
    return out


def _rgb(band: Image.Image) -> npt.NDArray[np.uint8]:
    """[H, W, 3], or [H, W, 1] for grey."""
    if band.mode == "I;16":  # Pillow's own conversion clips at 255
        wide = np.asarray(band)
        grey = (wide >> 8).astype(np.uint8)  # the high byte, as Pillow does for 16-bit colour
        if (key := band.info.get("transparency")) is not None:
            grey[wide == key] = 255
        return grey[:, :, None]
    if band.has_transparency_data:
        white = Image.new("RGBA", band.size, "white")
        band = Image.alpha_composite(white, band.convert("RGBA"))
    return np.asarray(band.convert("RGB"))
