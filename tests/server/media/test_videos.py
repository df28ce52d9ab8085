"""Videos decoded apart: the frames that were asked for, and what a hostile file costs."""

from __future__ import annotations

import asyncio
import base64
import errno
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from opsin_plugins.spec import Clip, VideoPlan, VideoSource
from opsin_server.errors import BadRequest, Unavailable
from opsin_server.media import load_videos, video_process
from opsin_server.media.load_videos import VideoLoader
from opsin_server.media.video_process import VideoDecoder
from opsin_server.media_limits import MediaLimits
from support import videos

PICTURES = videos.frames(9, 48, 64)
MP4 = videos.encoded(PICTURES)
WANTED = (0, 3, 3, 8)


def plan(source: VideoSource) -> VideoPlan:
    """To the last frame."""
    return VideoPlan(source, (*WANTED[:3], source.frames - 1), source.height, source.width, 1)


def decoded(data: bytes, make: Callable[[VideoSource], VideoPlan] = plan, **limits: float) -> Clip:
    return asyncio.run(VideoDecoder().decode(data, MediaLimits(**limits), make, 3))  # type: ignore[arg-type]


def refused(data: bytes, **limits: float) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        decoded(data, **limits)
    return caught.value


CODECS = [
    ("mp4", "libx264"),
    ("mov", "mpeg4"),
    ("matroska", "libx265"),
    ("webm", "libvpx"),
    ("webm", "libvpx-vp9"),
    ("mp4", "libsvtav1"),
    ("avi", "mpeg4"),
]


@pytest.mark.parametrize(("container", "codec"), CODECS)
def test_the_frames_are_those_that_were_asked_for(container: str, codec: str) -> None:
    data = videos.encoded(PICTURES, 8, container, codec)
    clip = decoded(data)
    assert clip.plan.source == VideoSource(9, 8.0, 48, 64)
    assert np.array_equal(clip.frames, videos.decoded(data)[list(WANTED)])


def test_they_are_brought_to_the_size_of_the_plan() -> None:
    clip = decoded(MP4, lambda source: VideoPlan(source, (1, 5), 24, 40, 1))
    assert np.array_equal(clip.frames, videos.clip(videos.decoded(MP4), clip.plan).frames)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_what_a_phone_has_turned_is_upright(degrees: int) -> None:
    data = videos.encoded(PICTURES, turned=degrees)
    clip = decoded(data)
    assert np.array_equal(clip.frames, np.rot90(videos.decoded(data)[[0, 3, 3, 8]], degrees // 90, (1, 2)))


def sizes_vary() -> bytes:
    """Two videos behind each other in one stream, as H.264 allows it."""
    return videos.joined([PICTURES[:4], videos.frames(4, 96, 64)])


def huge_frames() -> bytes:
    """Behind a header that calls them small."""
    return videos.joined([np.zeros((1, 4096, 4096, 3), np.uint8)], (48, 64))


def many_frames() -> bytes:
    return videos.encoded(np.zeros((400, 16, 16, 3), np.uint8), 30)


HOSTILE = {
    "nothing": (b"", {}, "no known format"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), {}, "no known format"),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", {}, "no known format"),
    "a list of files": (b"ffconcat version 1.0\nfile /etc/passwd\n", {}, "no known format"),
    "a beginning alone": (MP4[:12] + bytes(50), {}, "truncated or damaged"),
    "no index": (MP4[: len(MP4) // 2], {}, "truncated or damaged"),
    "noise inside": (MP4[:60] + bytes(range(256)) * 3 + MP4[828:], {}, ""),
    "a codec that is not accepted": (videos.encoded(PICTURES, 8, "avi", "ffv1"), {}, "codec is not accepted"),
    "a header that lies": (huge_frames(), {}, "16,777,216 pixels"),
    "frames of several sizes": (sizes_vary(), {}, "several sizes"),
    "large frames": (MP4, {"max_video_pixels": 48 * 64 - 1}, "--max-video-pixels"),
    "many frames": (many_frames(), {"max_video_frames": 300}, "--max-video-frames"),
    "a long time": (many_frames(), {"max_video_seconds": 10}, "--max-video-seconds"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_a_sentence_and_in_time(name: str) -> None:
    data, limits, said = HOSTILE[name]
    start = time.monotonic()
    error = refused(data, **limits)  # type: ignore[arg-type]
    assert said in error.message
    assert error.code in ("invalid_video", "video_too_large")
    assert time.monotonic() - start < MediaLimits().video_timeout


@pytest.mark.parametrize(
    ("work", "code"),
    [("os.abort()", "invalid_video"), ("print(flush=True)\nwhile True: pass", "video_too_large")],
    ids=["ends", "works"],
)
def test_a_process_that_ends_or_works_too_long_is_one_requests_fault(
    monkeypatch: pytest.MonkeyPatch, work: str, code: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(video_process, "WORKER", ("-c", f"import os\n{work}"))
        assert refused(MP4, video_timeout=0.2).code == code
    assert len(decoded(MP4).frames) == len(WANTED)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("time.sleep(60)", "too busy"),
        ("print(flush=True); time.sleep(60)", "too busy"),
        ("os.kill(os.getpid(), 9)", "ended from outside"),
    ],
    ids=["does not start", "waits", "is killed"],
)
def test_a_process_that_is_held_up_or_killed_makes_no_video_wrong(
    monkeypatch: pytest.MonkeyPatch, work: str, said: str
) -> None:
    monkeypatch.setattr(video_process, "START_SECONDS", 1.0)
    monkeypatch.setattr(video_process, "WORKER", ("-c", f"import os, time; {work}"))
    with pytest.raises(Unavailable, match=said):
        decoded(MP4, video_timeout=0.2)


def test_what_decodes_opens_nothing_and_is_bounded() -> None:
    """Neither a file nor a connection, whatever a video asks for."""
    tries = (
        "from opsin_server.media import video_worker as worker",
        "worker._limit(worker.VideoFile(0, 1, 1, 1.0, 1.0))",
        "for name in ('open', 'connect'):",
        "    try: open('/etc/hosts') if name == 'open' else __import__('_socket').socket()",
        "    except OSError as error: print(name, error.errno)",
        "try: bytearray(3 * 2**29)",
        "except MemoryError: print('memory')",
    )
    ran = subprocess.run([sys.executable, "-c", "\n".join(tries)], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["open", str(errno.EMFILE), "connect", str(errno.EMFILE), "memory"]


def url(data: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


def test_without_the_extra_files_are_refused_and_frames_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_videos, "decodes_videos", lambda: False)
    loader = VideoLoader(MediaLimits(), VideoDecoder())
    with pytest.raises(BadRequest, match=r"pip install 'opsin\[video\]'") as caught:
        loader.check([url(MP4)], ["messages[0].content[0].video_url"])
    assert (caught.value.param, caught.value.code) == ("messages[0].content[0].video_url", "unsupported_video")
    loader.check([("data:image/png;base64,AAAA",)], ["messages[0].content[0].video"])


def load(kit, answer: bytes, path: str = "/a.mp4", **limits: object) -> tuple[Clip | BadRequest, list[bytes]]:
    async def run() -> tuple[Clip | BadRequest, list[bytes]]:
        async with kit.Loopback({path: answer}).running() as server:
            loader = VideoLoader(MediaLimits(**{"allow": ("127.0.0.1",), **limits}), VideoDecoder())
            try:
                found: Clip | BadRequest = await loader.from_file(f"http://127.0.0.1:{server.port}{path}", plan, 3)
            except BadRequest as error:
                found = error
            return found, server.requests

    return asyncio.run(run())


def test_a_url_is_fetched_under_the_rules_of_pictures(kit) -> None:
    clip, requests = load(kit, kit.http(MP4, kind="video/mp4"))
    assert isinstance(clip, Clip)
    assert b"Accept: video/*" in requests[0]
    for answer, limits, code in (
        (kit.http(MP4, kind="text/html"), {}, "invalid_video"),
        (kit.http(MP4, kind="video/mp4"), {"max_video_bytes": 1000}, "video_too_large"),
        (kit.http(b"", status="404 Not Found"), {}, "video_fetch_failed"),
        (kit.http(MP4, kind="video/mp4"), {"allow": ()}, "video_url_not_allowed"),
    ):
        error, requests = load(kit, answer, **limits)
        assert isinstance(error, BadRequest)
        assert error.code == code
        assert "image" not in error.message
    assert requests == []


def test_frames_are_pictures_of_one_size(kit) -> None:
    loader = VideoLoader(MediaLimits(max_images=1), VideoDecoder())
    urls = [kit.as_data_url(kit.encode(kit.picture(seed=seed), "PNG")) for seed in range(3)]
    clip = asyncio.run(loader.from_pictures(urls, None, lambda of: VideoPlan(of, (0, 1, 2), 12, 20, 1), 3, "here"))
    assert clip.plan.source == VideoSource(3, 2.0, 23, 37, sampled=True)
    assert clip.frames.shape == (3, 12, 20, 3)
    other = kit.as_data_url(kit.encode(kit.picture(38), "PNG"))
    with pytest.raises(BadRequest, match="this is 38 x 23, and the first 37 x 23") as caught:
        asyncio.run(loader.from_pictures([*urls, other], None, plan, 3, "here"))
    assert caught.value.param == "here[3]"
