"""Which of the four accepted formats some bytes are, by their content alone."""

import struct

from opsin_server.media import gif, jpeg, png, webp
from opsin_server.media.encoded_image import EncodedImage, invalid

# Only to refuse by name what people do send. Text formats are looked for in lower case.
_OTHERS = (
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\1\0", "ICO"),
    (b"%pdf", "PDF"),
    (b"8BPS", "PSD"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML (or SVG)"),
    (b"<!doctype", "HTML"),
    (b"<html", "HTML"),
)


def read_still(data: bytes) -> EncodedImage:
    """The first frame of an encoded image. Raises BadRequest for what is not PNG, JPEG, WEBP or GIF, or is damaged."""
    try:
        if data.startswith(png.SIGNATURE):
            return png.read_png(data)
        if data.startswith(jpeg.SIGNATURE):
            return jpeg.read_jpeg(data)
        if data.startswith(gif.SIGNATURES):
            return gif.read_gif(data)
        if webp.is_webp(data):
            return webp.read_webp(data)
    except (struct.error, IndexError):  # a field that should be there lies past the end
        raise invalid("The image is truncated or damaged") from None
    raise invalid(f"The image is {_name(data)}; PNG, JPEG, WEBP and GIF are accepted")


def _name(data: bytes) -> str:
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return "AVIF" if data[8:12] in (b"avif", b"avis") else "HEIF, or a video"
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")  # a byte order mark or white space before a text format
    text = start.lower()
    for magic, name in _OTHERS:
        if start.startswith(magic) or text.startswith(magic):
            return name
    return "of no known format"
