"""Decodes one video: a process of its own, which a hostile file may fill, hold up or crash. Started by `video_process`;
the only place where libav sees a caller's bytes. Ends after the frames, or with its standard input."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import av
import av.audio.codeccontext
import av.audio.stream
import av.subtitles.codeccontext
import av.subtitles.stream
import numpy as np

from opsin_plugins.families.images import resize
from opsin_plugins.spec import U8
from opsin_server.media.video_messages import (
    Decoded,
    Probed,
    VideoFile,
    WantedFrames,
    line_of,
    video_file_of,
    wanted_of,
)

MEMORY = 2**30  # bytes of addresses beside the file and those of an empty process
NICE = 5  # answers come first
# A file's first bytes say which reader it gets, and no other: none that opens further files or addresses.
READERS = ((b"\x1a\x45\xdf\xa3", 0, "matroska"), (b"ftyp", 4, "mp4"), (b"AVI ", 8, "avi"))
FORMATS = "MP4, MOV, WebM, Matroska and AVI"
DECODERS = ("h264", "hevc", "vp8", "vp9", "libdav1d", "mpeg4", "mjpeg")
CODECS = "H.264, H.265, VP8, VP9, AV1, MPEG-4 and Motion JPEG"
VP8_SHOWN = 0x10  # a bit of a packet's first byte
DAMAGED = "The video is truncated or damaged"


class FaultyVideo(Exception):
    """limit: whether it is a limit that the video is past."""

    def __init__(self, message: str, limit: bool = False) -> None:
        super().__init__(message)
        self.limit = limit


def main() -> None:
    os.nice(NICE)
    av.logging.set_level(None)
    to, came_from = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what a library prints is no answer
    _warm()
    to.write(b"\n")
    to.flush()
    asked = video_file_of(came_from.readline())
    data = came_from.read(asked.size)
    _limit(asked)
    probed = _probe(data, asked)
    _say(to, line_of(probed))
    if probed.fault or not (line := came_from.readline()):
        return
    wanted = wanted_of(line)
    try:
        for frame in _frames(data, asked, wanted):
            _say(to, line_of(Decoded()), np.ascontiguousarray(frame).data)
    except FaultyVideo as fault:
        _say(to, line_of(Decoded(str(fault))))
    except BrokenPipeError:
        raise
    except Exception:
        _say(to, line_of(Decoded(DAMAGED)))


def _say(to: IO[bytes], line: bytes, more: bytes | memoryview = b"") -> None:
    to.write(line + b"\n")
    to.write(more)
    to.flush()


def _warm() -> None:
    """What libraries load when they are first used: later there is no file that they could open."""
    made = BytesIO()
    with av.open(made, "w", format="avi") as file:
        stream = file.add_stream("mpeg4", rate=1, width=16, height=16, pix_fmt="yuv420p")
        file.mux([*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode()])
    asked, data = VideoFile(0, 256, 1, 1, 1), made.getvalue()
    resize(next(_frames(data, asked, WantedFrames((0,), 8, 8, 3))), 16, 16, 3)
    _probe(data, asked)


def _limit(asked: VideoFile) -> None:
    """From here on: memory, time of the processor, and not one more file or connection."""
    most = {
        resource.RLIMIT_CPU: math.ceil(time.process_time() + asked.timeout) + 1,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    with suppress(OSError, ValueError):  # (not every system says it)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most[resource.RLIMIT_AS] = used + MEMORY
    for limit, value in most.items():
        with suppress(OSError, ValueError):  # (nor has each of them)
            resource.setrlimit(limit, (value, value))


def _probe(data: bytes, asked: VideoFile) -> Probed:
    try:
        return _probed(data, asked)
    except FaultyVideo as fault:
        return Probed(str(fault), fault.limit)
    except Exception:  # libav's own words name its parts, and nothing that a caller knows
        return Probed(DAMAGED)


def _probed(data: bytes, asked: VideoFile) -> Probed:
    with _opened(data, asked) as file:
        stream = _stream(file)
        fps = float(stream.average_rate or 0)
        _check_size(stream.codec_context.width, stream.codec_context.height, asked)
        frames = _count(file, stream, asked)
    if not (math.isfinite(fps) and fps > 0):
        raise FaultyVideo("The video does not say how many frames it has in a second")
    if frames / fps > asked.max_seconds:
        seconds = f"{frames / fps:,.0f} seconds; the limit is {asked.max_seconds:g} (--max-video-seconds)"
        raise FaultyVideo(f"The video has {seconds}", limit=True)
    with _opened(data, asked) as file:
        first = next(_decoded(file, asked), None)
    if first is None:
        raise FaultyVideo(DAMAGED)
    height, width = _upright(first).shape[:2]
    return Probed(frames=frames, fps=fps, height=height, width=width)


def _opened(data: bytes, asked: VideoFile) -> Any:
    reader = next((name for magic, at, name in READERS if data[at : at + len(magic)] == magic), None)
    if reader is None:
        raise FaultyVideo(f"The video is of no known format; {FORMATS} are accepted")
    options = {
        "format_whitelist": "matroska,webm,mov,mp4,avi",
        "codec_whitelist": ",".join(DECODERS),
        "protocol_whitelist": "none",
        **_guard(asked),
    }
    try:
        return av.open(BytesIO(data), format=reader, options=options)
    except av.FFmpegError:
        raise FaultyVideo(DAMAGED) from None


def _guard(asked: VideoFile) -> dict[str, str]:
    """What a decoder may allocate, whatever the header says. (It rounds sides up, those of small pictures most.)"""
    return {"max_pixels": str(2 * asked.max_pixels + 2**16)}


def _stream(file: Any) -> Any:
    """Its first video, with the decoder that reads it."""
    if not file.streams.video:
        raise FaultyVideo("The file holds no video, or none in a codec that is accepted")
    stream = file.streams.video[0]
    context = stream.codec_context
    if context is None or context.codec.name not in DECODERS:
        raise FaultyVideo(f"The video's codec is not accepted; {CODECS} are")
    return stream


def _count(file: Any, stream: Any, asked: VideoFile) -> int:
    """Frames that decoding will show, by the packets: a header may say nothing, or anything."""
    count = packets = 0
    hidden = stream.codec_context.codec.name == "vp8"
    for packet in file.demux(stream):
        if not packet.size:
            continue
        packets += 1
        if packets > asked.max_frames:
            limit = f"{asked.max_frames:,} frames (--max-video-frames)"
            raise FaultyVideo(f"The video has more than the limit of {limit}", limit=True)
        shown = not hidden or bool(bytes(memoryview(packet)[:1])[0] & VP8_SHOWN)
        count += shown and not packet.is_discard
    if packets < stream.frames or not count:
        raise FaultyVideo(DAMAGED)
    return count


def _check_size(width: int, height: int, asked: VideoFile) -> None:
    if width < 1 or height < 1:
        raise FaultyVideo(DAMAGED)
    if width * height > asked.max_pixels:
        size = f"{width} x {height} = {width * height:,} pixels; the limit is {asked.max_pixels:,}"
        raise FaultyVideo(f"A frame of the video is {size} (--max-video-pixels)", limit=True)


def _decoded(file: Any, asked: VideoFile) -> Iterator[Any]:
    """Frame by frame, all of one size."""
    stream = _stream(file)
    context = stream.codec_context
    context.thread_count = 1
    context.options = _guard(asked)
    size = None
    for frame in file.decode(stream):
        _check_size(frame.width, frame.height, asked)
        if size is not None and size != (frame.width, frame.height):
            raise FaultyVideo("The video's frames are of several sizes")
        size = frame.width, frame.height
        yield frame


def _frames(data: bytes, asked: VideoFile, wanted: WantedFrames) -> Iterator[U8]:
    numbers = iter(wanted.numbers)
    number = next(numbers, None)
    with _opened(data, asked) as file:
        for at, frame in enumerate(_decoded(file, asked)):
            if number is None:
                return
            if at != number:
                continue
            made = resize(_upright(frame), wanted.height, wanted.width, wanted.resample)
            while number == at:
                yield made
                number = next(numbers, None)
    if number is not None:
        raise FaultyVideo(DAMAGED)


def _upright(frame: Any) -> U8:
    """RGB U8 [H, W, 3], turned as the file says."""
    picture: U8 = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))


if __name__ == "__main__":
    main()
