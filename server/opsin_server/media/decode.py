"""From a checked still picture to pixels. The only place where Pillow sees a caller's bytes."""

from io import BytesIO

import numpy as np
import numpy.typing as npt

# Imported by name so that they are registered: Image.open would import all 43 plugins to look for WEBP.
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401

from opsin_server.errors import OpsinError
from opsin_server.media.encoded_image import EncodedImage, invalid
from opsin_server.media.orientation import turn_upright

# Rows are converted in bands of about this many pixels: the copies in between stay in cache, and a picture of 40
# million pixels needs 120 MB beside its own and not 480.
BAND_PIXELS = 2**18


def decode(still: EncodedImage) -> npt.NDArray[np.uint8]:
    """RGB U8 [H, W, 3], C-contiguous and upright. Call check_size first. Raises BadRequest for a damaged picture."""
    try:
        with Image.open(BytesIO(still.data), formats=(still.format,)) as image:
            if image.size != (still.width, still.height):
                raise invalid(f"The {still.format} gives two different sizes")
            image.load()
            pixels = flatten(image)
    except (OpsinError, MemoryError):
        raise
    except Exception:
        # On damaged bytes Pillow raises nearly every type there is. Its text stays here: it can hold addresses.
        raise invalid(f"The {still.format} is truncated or damaged") from None
    return np.ascontiguousarray(turn_upright(pixels, still.orientation))


def flatten(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Any of Pillow's modes to plain RGB, U8 [H, W, 3], C-contiguous; what lies under transparency becomes white."""
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
