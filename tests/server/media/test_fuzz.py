"""Random damage to valid files: a picture or a BadRequest, never anything else."""

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsin_server.errors import BadRequest
from opsin_server.media.data_url import decode_data_url
from opsin_server.media.decode import decode
from opsin_server.media.detect_format import read_still
from opsin_server.media.encoded_image import check_size
from opsin_server.media.url import parse_url
from opsin_server.media_limits import MediaLimits

LIMITS = MediaLimits(max_image_pixels=1_000_000)
INTERESTING = [b"\0", b"\1", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"]

FUZZ = settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """Some edits: what to do, where (as a share of the file, the header more often), with which bytes."""
    place = st.one_of(st.floats(0, 1), st.floats(0, 0.05))
    patch = st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from(INTERESTING))
    edit = st.tuples(st.sampled_from(["set", "set", "set", "insert", "delete", "cut", "repeat"]), place, patch)
    return draw(st.lists(edit, min_size=1, max_size=5))


def damage(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for action, share, patch in edits:
        at = int(share * len(data))
        if action == "set":
            data = data[:at] + patch + data[at + len(patch) :]
        elif action == "insert":
            data = data[:at] + patch + data[at:]
        elif action == "delete":
            data = data[:at] + data[at + len(patch) :]
        elif action == "repeat":
            data = data[:at] + data[at // 2 :]
        else:
            data = data[:at]
    return data


def refusal(work: Callable[[], object]) -> str | None:
    """The code of the BadRequest that `work` ends in, or None; any other error is a failure."""
    try:
        work()
    except BadRequest as error:
        return error.code
    return None


@settings(FUZZ, max_examples=600)
@given(which=st.integers(0, 10**6), edits=damages())
def test_damaged_files(kit, which: int, edits: list[tuple[str, float, bytes]]) -> None:
    files = FILES or FILES.update(kit.valid_files()) or FILES
    data = damage(list(files.values())[which % len(files)], edits)

    def load() -> None:
        still = read_still(data)
        check_size(still, LIMITS)
        pixels = decode(still)
        assert pixels.dtype == np.uint8
        assert sorted(pixels.shape[:2]) == sorted((still.width, still.height))

    assert refusal(load) in (None, "invalid_image", "image_too_large")


FILES: dict[str, bytes] = {}  # made once; a fixture would be made anew for every example


@FUZZ
@given(st.one_of(st.text(), st.text("data:image/png;base64,%A0= ").map("data:image/png".__add__)))
def test_any_data_url(text: str) -> None:
    source = text if text.lower().startswith("data:") else f"data:{text}"
    assert refusal(lambda: decode_data_url(source, LIMITS)) in (None, "invalid_image")


@FUZZ
@given(st.one_of(st.text(), st.text().map("http://".__add__), st.text("a1.:@[]%/\\?# -").map("https://".__add__)))
def test_any_url_parses_to_plain_ascii_or_is_refused(text: str) -> None:
    def parse() -> None:
        url = parse_url(text)
        assert url.scheme in ("http", "https")
        assert str(url).isascii()
        assert str(url).isprintable()
        assert not set(url.host) & set("@/\\?#%[] ")
        assert 0 < url.port < 65536
        assert parse_url(str(url)) == url  # what is sent reads back as what was checked

    assert refusal(parse) in (None, "image_url_not_allowed")
