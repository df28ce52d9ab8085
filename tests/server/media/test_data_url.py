"""data: URLs, good and bad."""

import base64
import time
import tracemalloc
from urllib.parse import quote

import pytest

from opsin_server.errors import BadRequest
from opsin_server.media.data_url import decode_data_url
from opsin_server.media_limits import MediaLimits

DATA = bytes(range(256)) * 3 + b"tail"
TEXT = base64.b64encode(DATA).decode()
LINES = "\r\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76))


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{TEXT}",
        f"DATA:IMAGE/PNG;BASE64,{TEXT}",
        f"data:image/png;charset=utf-8;name=a.png;base64,{TEXT}",
        f"data: image/png ; base64 , {TEXT} ",
        f"data:image/png;base64,{LINES}",
        f"data:image/png;base64,{TEXT[:5]} \t\n\r{TEXT[5:]}\n",
        f"data:image/png;base64,{quote(TEXT, safe='')}",
        f"data:image/png;base64,{quote(LINES)}",
        f"data:image/png;base64,{''.join(f'%{ord(c):02x}' for c in TEXT)}",
        f"data:image/png,{quote(DATA)}",
        f"data:image/x-anything,{''.join(f'%{byte:02X}' for byte in DATA)}",
    ],
)
def test_every_way_to_write_the_same_bytes(url: str) -> None:
    assert decode_data_url(url, MediaLimits()) == DATA


@pytest.mark.parametrize("length", [65_534, 65_535, 65_536, 65_537, 131_072])
@pytest.mark.parametrize("tail", ["", "%", "%4", "%41", "%zz", "%4z%41"])
def test_escapes_across_the_border_of_a_piece(length: int, tail: str) -> None:
    plain = tail.replace("%41", "A")
    for end in ("", "%42"):
        url = f"data:image/png,{'a' * (length - len(tail))}{tail}{end}"
        assert decode_data_url(url, MediaLimits()) == b"a" * (length - len(tail)) + plain.encode() + b"B" * bool(end)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("data:", "comma"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;" + "x=y;" * 100 + "base64,AAAA", "comma"),
        ("data:,AAAA", "declares ''"),
        ("data:;base64,AAAA", "declares ''"),
        ("data:text/html;base64,AAAA", "'text/html'"),
        ("data:text/plain,hello", "'text/plain'"),
        ("data:application/octet-stream;base64,AAAA", "'application/octet-stream'"),
        ("data:imagepng;base64,AAAA", "'imagepng'"),
        ("data:image/png;base64,A", "base64"),
        ("data:image/png;base64,AAA", "base64"),
        ("data:image/png;base64,AAAAA===", "base64"),
        ("data:image/png;base64,AA=A", "base64"),
        ("data:image/png;base64,AA==AA==", "base64"),
        ("data:image/png;base64,=AAA", "base64"),
        ("data:image/png;base64,AA-_", "base64"),
        ("data:image/png;base64,AA*A", "base64"),
        ("data:image/png;base64,AAA\x00", "base64"),
        ("data:image/png;base64,AAAé", "base64"),
        ("data:image/png;base64,AAA\ud800", "base64"),
        ("data:image/png;base64,%zzAA", "base64"),
        ("data:image/png;base64,data:image/png;base64,AAAA", "base64"),
        (f"data:image/png;base64,https://example.com/{TEXT}", "base64"),
    ],
)
def test_bad_ones_are_refused(url: str, text: str) -> None:
    with pytest.raises(BadRequest, match=text) as caught:
        decode_data_url(url, MediaLimits())
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize("over", [0, 1, 2, 3])
@pytest.mark.parametrize("write", [base64.b64encode, base64.encodebytes, quote])
def test_the_limit_is_exact(over: int, write) -> None:
    data = b"\xff" * (99_999 + over)
    text = write(data)
    text = text if isinstance(text, str) else text.decode()
    url = f"data:image/png{',' if write is quote else ';base64,'}{text}"
    limits = MediaLimits(max_image_bytes=100_000)
    if over <= 1:
        assert decode_data_url(url, limits) == data
        return
    with pytest.raises(BadRequest, match=r"the limit is 100,000 \(--max-image-bytes\)") as caught:
        decode_data_url(url, limits)
    assert caught.value.code == "image_too_large"
    if write is not quote:
        assert f"image is {len(data):,} bytes" in caught.value.message


@pytest.mark.parametrize(
    ("head", "unit"),
    [
        (";base64,", "A"),
        (";base64,", "A "),
        (";base64,", "="),
        (";base64,", " "),
        (";base64,", "%"),
        (";base64,", "%41"),
        (";base64,", "%4"),
        (";base64,", "%20"),
        (",", "%41"),
        (",", "%"),
        (",", "a"),
        (";", ";"),
        ("", "%2c"),
        (",", "\ud800"),
    ],
)
def test_time_and_memory_stay_in_proportion(head: str, unit: str) -> None:
    """20 MB of the worst text: linear in time, and refused within 64 MB where it is refused."""
    url = f"data:image/png{head}{unit * (20 * 2**20 // len(unit))}"
    limits = MediaLimits(max_image_bytes=2**20)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(BadRequest):
        decode_data_url(url, limits)
    elapsed = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert elapsed < 1
    assert peak < 64 * 2**20
