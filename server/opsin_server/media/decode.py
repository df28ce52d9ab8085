"""From a checked still picture to pixels. The only place where Pillow sees a caller's bytes."""

from io import BytesIO

import numpy as np
import numpy.typing as npt

# Imported by name so that they are registered: Image.open would import all 43 plugins to look for WEBP.
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401

from opsin_server.errors import OpsinError
from opsin_server.media.encoded_image import EncodedImage, invalid
from opsin_server.media.flatten import flatten
from opsin_server.media.orientation import turn_upright


def decode(still: EncodedImage) -> npt.NDArray[np.uint8]:
    """RGB U8 [H, W, 3], C-contiguous and upright. Call check_size first. Raises BadRequest for a damaged picture."""
    try:
        with Image.open(BytesIO(still.data), formats=(still.format,)) as image:
            if image.size != (still.width, still.height):
                raise invalid(f"{still.format} gives two different sizes")
            image.load()
            pixels = flatten(image)
    except (OpsinError, MemoryError):
        raise
    except Exception:
        # On damaged bytes Pillow raises nearly every type there is. Its text stays here: it can hold addresses.
        raise invalid(f"{still.format} is truncated or damaged") from None
    return np.ascontiguousarray(turn_upright(pixels, still.orientation))
