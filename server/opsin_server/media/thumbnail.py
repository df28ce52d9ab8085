"""A picture made small, for people to recognise."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image, WebPImagePlugin  # noqa: F401

from opsin_plugins.spec import U8

SIDE = 192  # pixels of the longer side
QUALITY = 80


def thumbnail(pixels: U8) -> str:
    """RGB [H, W, 3] as a data: URL."""
    image, out = Image.fromarray(pixels), BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(out, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
