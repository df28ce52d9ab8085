"""Videos decoded by processes of their own (`video_worker`), one a video: what hangs, fills memory or crashes is one
request's fault, and no process sees two requests' bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from opsin_plugins.spec import Clip, VideoPlan, VideoSource
from opsin_server.child_work import FROM_OUTSIDE, within_work
from opsin_server.errors import BadRequest, OpsinError, Unavailable
from opsin_server.media.media_kind import VIDEO
from opsin_server.media.video_messages import (
    Probed,
    VideoFile,
    WantedFrames,
    decoded_of,
    line_of,
    probed_of,
)
from opsin_server.media_limits import MediaLimits

WORKER = ("-m", "opsin_server.media.video_worker")
START_SECONDS = 30.0
END_SECONDS = 1.0
PATIENCE = 2  # times the limit of its work, on a machine that has others
BUSY = "This machine is too busy to decode the video. Try again"
AT_ONCE = max(1, (os.cpu_count() or 1) // 2)
NOT_INSTALLED = (
    "this server decodes no video files: its operator installs that with pip install 'opsin[video]'. Frames may be "
    'sent as pictures: {"type": "video", "video": [URL, URL, ...], "fps": 2}'
)
PlanVideo = Callable[[VideoSource], VideoPlan]
"""Which frames are taken of a video. Raises BadRequest for one that the model cannot take."""


def decodes_videos() -> bool:
    return find_spec("av") is not None


class VideoDecoder:
    """Holds nothing of a video between two of them."""

    def __init__(self) -> None:
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def decode(self, data: bytes, limits: MediaLimits, plan: PlanVideo, resample: int) -> Clip:
        """resample: PIL's number of the filter that brings frames to the plan's size. Raises BadRequest."""
        try:
            await asyncio.wait_for(self._gate.acquire(), limits.video_timeout)
        except TimeoutError:
            raise Unavailable("The videos of too many requests are being decoded. Try again") from None
        try:
            return await _decoded(data, limits, plan, resample)
        finally:
            self._gate.release()


async def _decoded(data: bytes, limits: MediaLimits, plan: PlanVideo, resample: int) -> Clip:
    pipe, seconds = asyncio.subprocess.PIPE, limits.video_timeout
    process = await asyncio.create_subprocess_exec(
        sys.executable, *WORKER, stdin=pipe, stdout=pipe, start_new_session=True
    )
    try:
        await _started(process)
        talk = _talk(process, data, limits, plan, resample)
        return await within_work(talk, process.pid, seconds, PATIENCE * seconds, BUSY)
    except TimeoutError:
        limit = f"{seconds:g} s (--video-timeout)"
        raise VIDEO.too_large(f"Decoding the video takes longer than the limit of {limit}") from None
    except (ConnectionError, asyncio.IncompleteReadError, RuntimeError):  # (uvloop raises the last)
        raise await _why_it_ended(process) from None
    finally:
        with contextlib.suppress(ProcessLookupError, RuntimeError):
            process.kill()
        await process.wait()


async def _started(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            await process.stdout.readexactly(1)
    except TimeoutError:
        raise Unavailable(BUSY) from None


async def _why_it_ended(process: asyncio.subprocess.Process) -> OpsinError:
    """That it did is known."""
    with contextlib.suppress(TimeoutError):  # (killing it would hide how)
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    if process.returncode in FROM_OUTSIDE:
        return Unavailable("What decodes videos was ended from outside. Try again")
    return VIDEO.invalid("The video cannot be decoded, or not in the memory that there is for one")


async def _talk(
    process: asyncio.subprocess.Process, data: bytes, limits: MediaLimits, plan: PlanVideo, resample: int
) -> Clip:
    to, came = process.stdin, process.stdout
    assert to is not None
    assert came is not None
    asked = VideoFile(
        len(data),
        limits.max_video_pixels,
        limits.max_video_frames,
        limits.max_video_seconds,
        limits.video_timeout,
    )
    to.write(line_of(asked) + b"\n")
    to.write(data)
    await to.drain()
    found = _checked(probed_of(await came.readuntil()))
    made = plan(VideoSource(found.frames, found.fps, found.height, found.width))
    to.write(line_of(WantedFrames(made.frames, made.height, made.width, resample)) + b"\n")
    await to.drain()
    frames = np.empty((len(made.frames), made.height, made.width, 3), np.uint8)
    for frame in frames:
        if fault := decoded_of(await came.readuntil()).fault:
            raise VIDEO.invalid(fault)
        frame[:] = np.frombuffer(await came.readexactly(frame.size), np.uint8).reshape(frame.shape)
    return Clip(made, frames)


def _checked(found: Probed) -> Probed:
    if not found.fault:
        return found
    error: BadRequest = VIDEO.too_large(found.fault) if found.limit else VIDEO.invalid(found.fault)
    raise error
