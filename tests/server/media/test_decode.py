"""What decodes, decodes as Pillow does it; where Pillow is wrong, as the format says."""

import asyncio
import io
import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageOps

from opsin_server.errors import BadRequest
from opsin_server.media.decode import BAND_PIXELS, decode
from opsin_server.media.detect_format import read_still
from opsin_server.media.encoded_image import check_size
from opsin_server.media.load_images import load_images
from opsin_server.media.orientation import read_orientation
from opsin_server.media_limits import MediaLimits


def load(data: bytes) -> np.ndarray:
    still = read_still(data)
    check_size(still, MediaLimits())
    pixels = decode(still)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    return pixels


def by_pillow(data: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def test_every_kind_equals_pillow(kit) -> None:
    for name, data in kit.valid_files().items():
        assert np.array_equal(load(data), by_pillow(data)), name


SAVED = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK", "YCbCr"],
    "WEBP": ["L", "LA", "RGB", "RGBA", "P"],
    "GIF": ["1", "L", "P", "RGB", "RGBA"],
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in SAVED.items() for mode in modes])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (301, 2), (64, 64)])
def test_modes_and_sizes(kit, kind: str, mode: str, size: tuple[int, int]) -> None:
    rgb = kit.picture(*size)
    if mode in ("LA", "RGBA"):
        rgb.putalpha(Image.fromarray(np.asarray(rgb.convert("L")) * 3))
    image = (
        Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else rgb.convert(mode)
    )
    data = kit.encode(image, kind)
    expected = np.asarray(rgb.convert("L").convert("RGB")) if mode == "I;16" else by_pillow(data)
    assert np.array_equal(load(data), expected)


def test_a_picture_of_several_bands(kit) -> None:
    side = int((2.5 * BAND_PIXELS) ** 0.5)
    image = kit.picture(side, side)
    image.putalpha(128)
    for data in (kit.encode(image, "PNG", compress_level=1), kit.encode(image.convert("RGB"), "JPEG")):
        assert np.array_equal(load(data), by_pillow(data))


def test_lossless_pixels_are_exact(kit) -> None:
    image = kit.picture()
    for kind, options in (("PNG", {}), ("PNG", {"optimize": True}), ("WEBP", {"lossless": True})):
        assert np.array_equal(load(kit.encode(image, kind, **options)), np.asarray(image))


@pytest.mark.parametrize("alpha", [0, 1, 127, 128, 254, 255])
def test_alpha_lies_over_white(kit, alpha: int) -> None:
    data = kit.encode(Image.new("RGBA", (2, 2), (10, 100, 200, alpha)), "PNG")
    expected = [round((color * alpha + 255 * (255 - alpha)) / 255) for color in (10, 100, 200)]
    assert np.abs(load(data).astype(int) - expected).max() <= 1
    if alpha == 0:
        assert (load(data) == 255).all()


def test_palette_transparency_lies_over_white(kit) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    one = kit.encode(image, "PNG", transparency=1)
    assert load(one).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    several = kit.encode(image, "PNG", transparency=bytes([0, 255, 128]))
    assert load(several).tolist() == [[[255, 255, 255], [0, 255, 0], [127, 127, 255]]]
    gif = kit.encode(image, "GIF", transparency=2)
    assert load(gif).tolist() == [[[255, 0, 0], [0, 255, 0], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("depth", "color", "rows", "key", "expected"),
    [
        # grey: two samples, the second transparent
        (1, 0, b"\0\x40", "H 1", [[0, 0, 0], [255, 255, 255]]),
        (1, 0, b"\0\x80", "H 0", [[255, 255, 255], [255, 255, 255]]),
        (2, 0, b"\0\x60", "H 2", [[85, 85, 85], [255, 255, 255]]),
        (4, 0, b"\0\x3c", "H 12", [[51, 51, 51], [255, 255, 255]]),
        (8, 0, b"\0\x30\x31", "H 49", [[48, 48, 48], [255, 255, 255]]),
        (16, 0, b"\0\x30\x31\x30\x32", "H 12338", [[48, 48, 48], [255, 255, 255]]),
        # colour
        (8, 2, b"\0\1\2\3\4\5\6", "HHH 4 5 6", [[1, 2, 3], [255, 255, 255]]),
        (16, 2, b"\0\1\0\2\0\3\0\4\1\5\2\6\3", "HHH 1025 1282 1539", [[1, 2, 3], [255, 255, 255]]),
        # no key: the high byte of 16
        (16, 0, b"\0\x30\x31\xff\xff", None, [[48, 48, 48], [255, 255, 255]]),
        (16, 2, b"\0\1\xff\2\xff\3\xff\xff\xff\0\0\x80\0", None, [[1, 2, 3], [255, 0, 128]]),
        (16, 4, b"\0\x20\0\xff\xff\x20\0\0\0", None, [[32, 32, 32], [255, 255, 255]]),
        (16, 6, b"\0\1\0\2\0\3\0\xff\xff\1\0\2\0\3\0\0\0", None, [[1, 2, 3], [255, 255, 255]]),
    ],
)
def test_png_depths_and_key_colours(kit, depth: int, color: int, rows: bytes, key: str | None, expected: list) -> None:
    before = b""
    if key:
        form, *values = key.split()
        before = kit.png_chunk(b"tRNS", struct.pack(">" + form, *map(int, values)))
    assert load(kit.make_png((2, 1), depth, color, rows, before)).tolist() == [expected]


def test_interlaced_png(kit) -> None:
    # Adam7 of 2 x 2: pass 1 holds (0, 0), pass 6 holds (1, 0), pass 7 the second row
    rows = b"\0\x0a" + b"\0\x14" + b"\0\x1e\x28"
    assert load(kit.make_png((2, 2), 8, 0, rows, interlace=1))[:, :, 0].tolist() == [[10, 20], [30, 40]]


@pytest.mark.parametrize("orientation", [*range(10), 65535])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_turns_the_picture(kit, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif[0x0112] = orientation
    data = kit.encode(kit.picture(), kind, exif=exif)
    assert np.array_equal(load(data), by_pillow(data))


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_either_byte_order(order: str) -> None:
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    entries = struct.pack(order + "HHHIHHHHIHH", 2, 0x0100, 3, 1, 5, 0, 0x0112, 3, 1, 8, 0)
    assert read_orientation(start + entries) == read_orientation(b"Exif\0\0" + start + entries) == 8


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II*\0\x08\0\0\0\1\0\x12\1\3\0",
        b"II*\0\x08\0\0\0\1\0\x12\1\2\0\1\0\0\0\6\0\0\0",  # not a SHORT
        b"garbage",
    ],
)
def test_damaged_exif_does_not_cost_the_picture(kit, exif: bytes) -> None:
    assert read_orientation(exif) == 1
    image = kit.picture()
    jpeg = kit.encode(image, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    assert np.array_equal(load(jpeg[:2] + segment + jpeg[2:]), by_pillow(jpeg))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_of_an_animation_the_first_frame(kit, kind: str) -> None:
    frames = [kit.picture(seed=seed) for seed in range(30)]
    data = kit.encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(load(data), by_pillow(data))
    if kind != "GIF":
        assert np.array_equal(load(data), np.asarray(frames[0]))
        assert len(read_still(data).data) < len(data) / 10  # the others never reach the decoder


def test_apng_whose_default_image_is_not_in_the_animation(kit) -> None:
    frames = [kit.picture(seed=seed) for seed in range(3)]
    data = kit.encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert np.array_equal(load(data), np.asarray(frames[0]))


def test_gif_with_a_frame_in_a_corner_and_one_beyond_the_screen(kit) -> None:
    frame = kit.encode(kit.picture(8, 6).convert("P"), "GIF")
    at = frame.index(b",", 13 + (6 << (frame[10] & 7)))
    for screen, corner in (((20, 20), (5, 3)), ((4, 4), (2, 1))):
        head = frame[:6] + struct.pack("<HH", *screen) + frame[10:at]
        data = head + b"," + struct.pack("<HH", *corner) + frame[at + 5 :]
        assert np.array_equal(load(data), by_pillow(data))


def test_jpeg_extras_are_no_obstacle(kit) -> None:
    image = kit.picture()
    plain = kit.encode(image, "JPEG")
    expected = by_pillow(plain)
    rich = kit.encode(image, "JPEG", icc_profile=bytes(70_000), comment=b"c" * 500, dpi=(300, 300))
    mpo = kit.encode(image, "MPO", save_all=True, append_images=[kit.picture(seed=1)])
    for data in (rich, mpo, plain + b"\0" * 99, plain + plain, plain[:2] + b"\xff\xff\xff" + plain[2:]):
        assert np.array_equal(load(data), expected)


def test_rgb_and_ycck_jpeg(kit) -> None:
    image = kit.picture()
    plain, cmyk = kit.encode(image, "JPEG"), kit.encode(image.convert("CMYK"), "JPEG")
    after_jfif = plain.index(b"\xff\xdb")
    adobe = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0"
    as_rgb = plain[:2] + adobe + b"\0" + plain[after_jfif:]  # the same numbers, said to be RGB
    as_ycck = cmyk.replace(adobe + b"\0", adobe + b"\2")
    assert not np.array_equal(by_pillow(as_rgb), by_pillow(plain))
    assert not np.array_equal(by_pillow(as_ycck), by_pillow(cmyk))
    for data in (
        as_rgb,
        as_ycck,
        kit.encode(image, "JPEG", keep_rgb=True),
        kit.encode(image.convert("CMYK"), "JPEG", subsampling=0),
        kit.encode(image, "JPEG", progressive=True, restart_marker_rows=1),
    ):
        assert np.array_equal(load(data), by_pillow(data))


@pytest.mark.parametrize("declared", ["png", "jpeg", "jpg", "webp", "gif", "svg+xml", "x-none"])
def test_the_content_decides_whatever_the_type_says(kit, declared: str) -> None:
    for data in kit.valid_files().values():
        (pixels,) = asyncio.run(load_images([kit.as_data_url(data, f"image/{declared}")], MediaLimits()))
        assert np.array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize(
    "name", ["png", "png-palette", "jpeg", "jpeg-progressive", "webp", "webp-lossless", "webp-alpha", "gif"]
)
def test_a_file_cut_anywhere_is_refused_or_whole(kit, name: str) -> None:
    """Never a picture whose lower part is missing."""
    data = kit.valid_files()[name]
    whole = load(data)
    accepted = []
    for end in range(len(data)):
        with suppress(BadRequest):
            accepted.append(load(data[:end]))
    assert all(np.array_equal(pixels, whole) for pixels in accepted)
    assert len(accepted) <= 2  # GIF may lack its last two bytes: they end the file, not the picture


def test_pillows_process_wide_switch_stays(kit) -> None:
    before = Image.MAX_IMAGE_PIXELS
    for data in kit.valid_files().values():
        load(data)
    assert before == Image.MAX_IMAGE_PIXELS == 89_478_485
