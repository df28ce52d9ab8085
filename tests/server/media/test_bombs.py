"""Files made to cost: each is a 400 within a second, and none makes the process grow by 64 MB."""

import asyncio
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from opsin_server.errors import BadRequest
from opsin_server.media.load_images import load_images
from opsin_server.media_limits import MediaLimits

MEMORY = 64 * 2**20


def zeros(size: int) -> bytes:
    """`size` zero bytes, deflated 1,000 to 1. The checksum is wrong: nobody may get that far."""
    packer = zlib.compressobj(9)
    start = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    megabyte = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + megabyte * (size >> 20) + packer.compress(bytes(size & (2**20 - 1))) + packer.flush()


def big_png(kit, width: int, height: int, depth: int, color: int, idat: bytes = b"", **chunks: bytes) -> bytes:
    data = kit.make_png((width, height), depth, color, b"", **chunks)
    empty = kit.png_chunk(b"IDAT", zlib.compress(b""))
    return data.replace(empty, kit.png_chunk(b"IDAT", idat))


def gif(width: int, height: int, frame: tuple[int, int, int, int], before: bytes = b"", after: bytes = b";") -> bytes:
    """Grey, its picture of one pixel's code only."""
    image = b"," + struct.pack("<HHHHB", *frame, 0) + b"\x08" + b"\x03\x00\x0b\x04\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + before + image + after


def webp(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4 if size is None else size) + b"WEBP" + body


def canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + sides


def jpeg_with(jpeg: bytes, **changed: int) -> bytes:
    """The same JPEG with another width or height in its frame header."""
    at = jpeg.index(b"\xff\xc0") + 5
    height, width = struct.unpack_from(">HH", jpeg, at)
    return jpeg[:at] + struct.pack(">HH", changed.get("height", height), changed.get("width", width)) + jpeg[at + 4 :]


def turned(data: bytes, kind: bytes) -> bytes:
    """One bit of a chunk's first byte."""
    at = data.index(kind) + 4
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def size_bombs(kit) -> dict[str, bytes]:
    """Small files, huge pictures: refused by name of --max-image-pixels before a pixel is decoded."""
    jpeg = kit.encode(kit.picture(), "JPEG")
    lossless = struct.pack("<BI", 0x2F, 16383 | 16383 << 14)
    lossy = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383)
    frame = bytes(6) + b"\xff\x3f\0\xff\x3f\0" + bytes(4) + b"VP8L" + struct.pack("<I", 5) + lossless + b"\0"
    wide = zeros(1625 * 13000 + 13000)
    return {
        "PNG 13000 x 13000, one bit": big_png(kit, 13000, 13000, 1, 0, wide),
        "PNG 13000 x 13000, palette": big_png(kit, 13000, 13000, 1, 3, wide, before=kit.png_chunk(b"PLTE", bytes(6))),
        "PNG 13000 x 13000, colour": big_png(kit, 13000, 13000, 8, 2, zeros(2**24)),
        "PNG 20000 x 20000, 16 bit alpha": big_png(kit, 20000, 20000, 16, 6, zeros(2**20)),
        "PNG of the greatest size": big_png(kit, 2**31 - 1, 2**31 - 1, 8, 0, zeros(99)),
        "PNG beyond the greatest size": big_png(kit, 2**32 - 1, 2**32 - 1, 8, 0, zeros(99)),
        "PNG very wide": big_png(kit, 40_000_001, 1, 8, 0, zeros(99)),
        "PNG very high": big_png(kit, 1, 40_000_001, 8, 0, zeros(99)),
        "PNG one pixel over": big_png(kit, 6451, 6201, 1, 0, zeros(99)),
        "PNG interlaced": kit.make_png((30000, 30000), 8, 6, bytes(999), interlace=1),
        "APNG of big frames": big_png(
            kit,
            13000,
            13000,
            8,
            0,
            zeros(99),
            before=kit.png_chunk(b"acTL", struct.pack(">II", 9, 0)),
            after=kit.png_chunk(b"fdAT", bytes(4) + zeros(2**20)) * 9,
        ),
        "JPEG 65500 x 65500": jpeg_with(jpeg, width=65500, height=65500),
        "JPEG 65535 x 65535": jpeg_with(jpeg, width=65535, height=65535),
        "JPEG high": jpeg_with(jpeg, height=65535, width=700),
        "JPEG progressive": kit.encode(kit.picture(), "JPEG", progressive=True).replace(
            b"\xff\xc2\x00\x11\x08\x00\x17\x00\x25", b"\xff\xc2\x00\x11\x08\xff\xff\xff\xff"
        ),
        "WEBP canvas of 16 million squared": webp(canvas(2**24, 2**24), (b"VP8L", lossless)),
        "WEBP canvas 16384 x 16384": webp(canvas(16384, 16384), (b"VP8L", lossless)),
        "WEBP lossless 16384 x 16384": webp((b"VP8L", lossless)),
        "WEBP lossy 16383 x 16383": webp((b"VP8 ", lossy)),
        "WEBP animation 16384 x 16384": webp(canvas(16384, 16384, 2), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * 999),
        "GIF screen 65535 x 65535": gif(65535, 65535, (0, 0, 1, 1)),
        "GIF frame 65535 x 65535": gif(1, 1, (0, 0, 65535, 65535)),
        "GIF frame far outside": gif(1, 1, (65535, 65535, 1, 1)),
        "GIF of many big frames": gif(8000, 8000, (0, 0, 8000, 8000), after=gif(0, 0, (0, 0, 8000, 8000))[13:] * 999),
    }


def text_bombs(kit) -> dict[str, bytes]:
    """Chunks that expand, in files cut short, so that they are refused and all that was read must have been small."""

    def png(before: bytes) -> bytes:
        return kit.make_png((4, 4), 8, 0, bytes(20), before)[:-12]

    def text(kind: bytes, head: bytes, size: int, times: int) -> bytes:
        return kit.png_chunk(kind, head + zeros(size)) * times

    jpeg = kit.encode(kit.picture(), "JPEG")[:-2]
    comment = b"\xff\xfe\xff\xff" + bytes(65533)
    profile = b"\xff\xe2\xff\xff" + b"ICC_PROFILE\0\1\1" + bytes(65519)
    exif = b"\xff\xe1\xff\xff" + b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(65517)
    return {
        "PNG zTXt of 1 GB": png(text(b"zTXt", b"k\0\0", 2**30, 1)),
        "PNG zTXt 60 x 1 MB": png(text(b"zTXt", b"k\0\0", 2**20 - 1, 60)),
        "PNG zTXt 1000 x 1 MB": png(text(b"zTXt", b"k\0\0", 2**20 - 1, 1000)),
        "PNG iTXt 1000 x 1 MB": png(text(b"iTXt", b"k\0\1\0\0\0", 2**20 - 1, 1000)),
        "PNG XMP 60 x 1 MB": png(text(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0", 2**20 - 1, 60)),
        "PNG iCCP of 1 GB": png(text(b"iCCP", b"p\0\0", 2**30, 1)),
        "PNG iCCP 100 x 1 MB": png(text(b"iCCP", b"p\0\0", 2**20 - 1, 100)),
        "PNG tEXt of 8 MB": png(kit.png_chunk(b"tEXt", b"k\0" + bytes(2**23))),
        "PNG eXIf of 8 MB": png(kit.png_chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(2**23))),
        "PNG of 300,000 empty chunks": png(kit.png_chunk(b"IDAT", b"") * 300_000),
        "PNG of 100,000 texts": png(kit.png_chunk(b"tEXt", b"k\0v") * 10**5),
        "JPEG comments": jpeg[:2] + comment * 60 + jpeg[2:],
        "JPEG profiles": jpeg[:2] + profile * 60 + jpeg[2:],
        "JPEG Exif": jpeg[:2] + exif * 60 + jpeg[2:],
        "JPEG of a million tiny comments": jpeg[:2] + b"\xff\xfe\0\2" * 10**6 + jpeg[2:],
        "JPEG of 4 MB of FF": jpeg[:2] + b"\xff" * (4 * 10**6),
        "JPEG of 4 MB of stuffing": jpeg + b"\xff\0" * (2 * 10**6),
        "GIF comment in blocks of one byte": gif(4, 4, (0, 0, 4, 4), before=b"!\xfe" + b"\1x" * 2_000_000),
        "GIF of many comments": gif(4, 4, (0, 0, 4, 4), before=b"!\xfe\1x\0" * 10**6),
        "WEBP of 200,000 chunks": webp(canvas(4, 4), *[(b"junk", b"")] * 200_000),
        "WEBP profile of 8 MB": webp(canvas(4, 4, 0x20), (b"ICCP", bytes(2**23)))[:-1],
    }


def broken_files(kit) -> dict[str, bytes]:
    """Cut, contradictory, of no size, or not what they say."""
    files = kit.valid_files()
    png, jpeg, progressive, gif_, webp_ = (files[k] for k in ("png", "jpeg", "jpeg-progressive", "gif", "webp"))
    out = {
        f"{name} cut at {share} %": data[: len(data) * share // 100]
        for name, data in (("PNG", png), ("JPEG", jpeg), ("progressive", progressive), ("GIF", gif_), ("WEBP", webp_))
        for share in (1, 10, 50, 75, 95)
    }
    noise = random.Random(1)
    for name, magic in (
        ("PNG", b"\x89PNG\r\n\x1a\n"),
        ("PNG with IHDR", png[:33]),
        ("JPEG", b"\xff\xd8\xff"),
        ("JPEG with tables", jpeg[:300]),
        ("GIF", b"GIF89a"),
        ("GIF87a", b"GIF87a"),
        ("WEBP", b"RIFF\x00\x10\x00\x00WEBP"),
        ("WEBP VP8", b"RIFF\x00\x10\x00\x00WEBPVP8 \xf0\x0f\x00\x00\x10\0\0\x9d\x01\x2a\x40\0\x40\0"),
        ("none", b""),
    ):
        out[f"noise after {name}"] = magic + noise.randbytes(8192)
    return out | {
        "PNG 0 x 5": big_png(kit, 0, 5, 8, 0, zeros(9)),
        "PNG 5 x 0": big_png(kit, 5, 0, 8, 0, zeros(9)),
        "JPEG 0 high": jpeg_with(jpeg, height=0),
        "JPEG 0 wide": jpeg_with(jpeg, width=0),
        "GIF 0 x 0": gif(0, 0, (0, 0, 0, 0)),
        "GIF frame 0 x 0": gif(9, 9, (0, 0, 0, 0)),
        "WEBP lossy 0 x 0": webp((b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + bytes(4))),
        "PNG without pixels": png[:33] + png[-12:],
        "PNG without header": png[:8] + png[33:],
        "PNG of less pixels than it says": big_png(kit, 2000, 2000, 8, 2, zlib.compress(bytes(999))[:-6]),
        "PNG of no known colour": kit.make_png((4, 4), 8, 7, bytes(20)),
        "PNG of no known depth": kit.make_png((4, 4), 3, 0, bytes(20)),
        "PNG of no known filter": kit.make_png((4, 4), 8, 0, b"\x09" * 20),
        "PNG with a short key colour": kit.make_png((4, 4), 8, 2, bytes(52), kit.png_chunk(b"tRNS", b"\0")),
        "PNG palette with one bit turned": turned(files["png-palette"], b"PLTE"),
        "PNG with one bit turned": png[:60] + bytes([png[60] ^ 1]) + png[61:],
        "PNG chunk longer than the file": png[:33] + b"\x7f\xff\xff\xff" + png[37:],
        "JPEG of two frames": jpeg.replace(b"\xff\xc0", b"\xff\xc0\0\x0b\x08\x17\x70\x17\x70\1\1\x11\0\xff\xc0", 1),
        "JPEG without scan": jpeg[: jpeg.index(b"\xff\xda")] + b"\xff\xd9",
        "JPEG without frame": jpeg[:2] + jpeg[jpeg.index(b"\xff\xda") :],
        "JPEG of 1000 scans": progressive[:-2] + progressive[progressive.rindex(b"\xff\xda") : -2] * 1000 + b"\xff\xd9",
        "JPEG lossless": jpeg.replace(b"\xff\xc0", b"\xff\xc3", 1),
        "JPEG hierarchical": jpeg.replace(b"\xff\xc0", b"\xff\xc5", 1),
        "GIF without frames": gif_[:13] + b";",
        "GIF of a screen only": gif_[:13],
        "GIF whose pixels end early": gif(60, 60, (0, 0, 60, 60)),
        "WEBP of nothing": webp(),
        "WEBP of metadata": webp((b"EXIF", b"II*\0")),
        "WEBP canvas without picture": webp(canvas(4, 4)),
        "WEBP whose canvas is another size": webp(canvas(900, 900), (b"VP8 ", webp_[20:])),
        "WEBP animation without frames": webp(canvas(4, 4, 2), (b"ANIM", bytes(6))),
        "WEBP frame outside the canvas": webp(canvas(4, 4, 2), (b"ANIM", bytes(6)), (b"ANMF", bytes(16) + webp_[12:])),
        "WEBP longer than the file": webp((b"VP8 ", webp_[20:]), size=2**31),
        "WEBP longer than a file can be": webp((b"VP8 ", webp_[20:]), size=2**32 - 1),
        "RIFF of sound": webp_[:8] + b"WAVE" + webp_[12:],
    }


def other_formats(kit) -> dict[str, tuple[bytes, str]]:
    """name -> (file, how the refusal calls it)"""
    image = kit.picture()
    html = b"\xef\xbb\xbf\n <!DOCTYPE html><title>not found</title>"
    return {
        "BMP": (kit.encode(image, "BMP"), "BMP"),
        "TIFF": (kit.encode(image, "TIFF"), "TIFF"),
        "TIFF big-endian": (b"MM\0*" + bytes(99), "TIFF"),
        "ICO": (kit.encode(image, "ICO"), "ICO"),
        "AVIF": (kit.encode(image, "AVIF"), "AVIF"),
        "HEIC": (b"\0\0\0\x18ftypheic" + bytes(99), "HEIF"),
        "MP4": (b"\0\0\0\x18ftypisom" + bytes(99), "video"),
        "JPEG 2000": (kit.encode(image, "JPEG2000"), "JPEG 2000"),
        "PDF": (kit.encode(image, "PDF"), "PDF"),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        "SVG of billion laughs": (b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaa">]><svg>&a;</svg>', "SVG"),
        "HTML": (html, "HTML"),
        "PPM": (kit.encode(image, "PPM"), "no known format"),
        "TGA": (kit.encode(image, "TGA"), "no known format"),
        "EPS": (kit.encode(image, "EPS"), "no known format"),
        "FITS": (b"SIMPLE  =                    T" + bytes(2880), "no known format"),
        "PSD": (b"8BPS" + bytes(99), "PSD"),
        "ZIP": (b"PK\3\4" + bytes(99), "no known format"),
        "pickle": (b"\x80\4\x95" + bytes(99), "no known format"),
        "text": (b"hello", "no known format"),
        "nothing": (b"", "empty"),
    }


@pytest.fixture(scope="module")
def everything(kit) -> dict[str, bytes]:
    named = {name: data for name, (data, _) in other_formats(kit).items()}
    return size_bombs(kit) | text_bombs(kit) | broken_files(kit) | named


def refuse(kit, data: bytes, mime: str = "image/png") -> BadRequest:
    source = kit.as_data_url(data, mime)
    start = time.process_time()
    with pytest.raises(BadRequest) as caught:
        asyncio.run(load_images([source], MediaLimits(), ["here"]))
    assert time.process_time() - start < 1  # of processor, so that a busy machine does not fail the test
    assert (caught.value.status, caught.value.param) == (400, "here")
    assert "0x" not in caught.value.message  # Pillow's own texts show where objects lie in memory
    return caught.value


def test_there_are_enough_files(everything) -> None:
    assert len(everything) >= 60


def test_pictures_too_large_are_refused_by_name(kit) -> None:
    for name, data in size_bombs(kit).items():
        error = refuse(kit, data)
        assert error.code == "image_too_large", name
        assert error.message.endswith("pixels; the limit is 40,000,000 (--max-image-pixels)"), name
        assert len(data) < 2**20 or "APNG" in name


def test_the_message_has_the_size(kit) -> None:
    message = refuse(kit, size_bombs(kit)["PNG 13000 x 13000, one bit"]).message
    limit = "the limit is 40,000,000 (--max-image-pixels)"
    assert message == f"The image is 13000 x 13000 = 169,000,000 pixels; {limit}"


def test_broken_files_are_invalid(kit) -> None:
    for name, data in (text_bombs(kit) | broken_files(kit)).items():
        assert refuse(kit, data, "image/webp").code == "invalid_image", name


def test_a_picture_without_pixels_is_refused_by_its_size(kit) -> None:
    message = refuse(kit, broken_files(kit)["PNG 0 x 5"]).message
    assert message == "The image is 0 x 5 pixels"


def test_other_formats_are_refused_by_name(kit) -> None:
    for name, (data, called) in other_formats(kit).items():
        error = refuse(kit, data)
        assert error.code == "invalid_image", name
        assert called in error.message, name
        assert "PNG, JPEG, WEBP and GIF" in error.message


def test_of_many_frames_only_the_first_costs(kit) -> None:
    """Valid files that would take minutes and gigabytes whole: they decode, quickly."""
    frame = gif(0, 0, (0, 0, 3000, 3000))[13:-1]
    still = kit.encode(Image.new("L", (3000, 3000)), "GIF")
    lossless = kit.encode(Image.new("RGB", (3000, 3000)), "WEBP", lossless=True)[12:]
    size = (3000 - 1).to_bytes(3, "little") * 2
    many = webp(
        canvas(3000, 3000, 2), (b"ANIM", bytes(6)), *[(b"ANMF", bytes(6) + size + bytes(4) + lossless)] * 10_000
    )
    text = kit.png_chunk(b"zTXt", b"k\0\0" + zeros(2**26)) * 99
    rich = kit.make_png((1000, 1000), 8, 0, bytes(1001 * 1000), after=text)
    for data in (still[:-1] + frame * 10_000 + b";", many, rich):
        start = time.process_time()
        asyncio.run(load_images([kit.as_data_url(data)], MediaLimits()))
        assert time.process_time() - start < 1


def test_a_stream_that_goes_on_after_the_last_pixel_is_not_read(kit) -> None:
    data = big_png(kit, 4, 4, 8, 0, zeros(2**30))
    start = time.process_time()
    asyncio.run(load_images([kit.as_data_url(data)], MediaLimits()))
    assert time.process_time() - start < 1


CHILD = """
import asyncio, json, re, sys, time
from pathlib import Path
from opsin_server.errors import BadRequest
from opsin_server.media_limits import MediaLimits
from opsin_server.media.load_images import load_images

def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def load(path):
    source = path.read_text()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    start = time.process_time()
    try:
        asyncio.run(load_images([source], MediaLimits()))
        refused = False
    except BadRequest:
        refused = True
    return path.name, refused, time.process_time() - start, resident("VmHWM") - before

warm, *files = sorted(Path(sys.argv[1]).iterdir())
load(warm)
print(json.dumps([load(path) for path in files]))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak memory counter")
def test_no_bomb_makes_the_process_grow(kit, everything, tmp_path: Path) -> None:
    names = []
    (tmp_path / "0000").write_text(kit.as_data_url(kit.valid_files()["png"]))
    for name, data in everything.items():
        names.append(name)
        (tmp_path / f"{len(names):04}").write_text(kit.as_data_url(data))
    done = subprocess.run([sys.executable, "-c", CHILD, tmp_path], capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)
    assert len(results) == len(names)
    for name, (_, refused, seconds, growth) in zip(names, results, strict=True):
        assert refused, name
        assert seconds < 1, name
        assert growth < MEMORY, f"{name}: {growth >> 20} MB"
