"""A request's videos, from their URLs to frames: of a file, or of pictures that are its frames."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import numpy as np

from opsin_plugins.families.images import resize
from opsin_plugins.spec import U8, Clip, VideoSource
from opsin_server.errors import BadRequest
from opsin_server.media.connect import Network
from opsin_server.media.data_url import decode_data_url
from opsin_server.media.fetch import fetch
from opsin_server.media.file_id import FileId, ReadFile, read_file
from opsin_server.media.load_images import WORKERS, load_images
from opsin_server.media.media_kind import VIDEO
from opsin_server.media.url import parse_url
from opsin_server.media.video_process import NOT_INSTALLED, PlanVideo, VideoDecoder, decodes_videos
from opsin_server.media_limits import MediaLimits

DEFAULT_FPS = 2.0  # of frames whose sender does not say it: what Qwen's own helper assumes


@dataclass(frozen=True)
class VideoLoader:
    """videos, images: the files that a request may name. network: None: the world's. threads: decode pictures."""

    limits: MediaLimits
    decoder: VideoDecoder
    videos: ReadFile | None = None
    images: ReadFile | None = None
    network: Network | None = None
    threads: ThreadPoolExecutor = WORKERS

    def check(self, sources: Sequence[str | tuple[str, ...]], params: Sequence[str]) -> None:
        """What can be refused before anything is fetched. Raises BadRequest."""
        if len(sources) > self.limits.max_videos:
            message = f"The request has {len(sources)} videos; the limit is {self.limits.max_videos} (--max-videos)"
            raise BadRequest(message, param=params[self.limits.max_videos], code="too_many_videos")
        for source, param in zip(sources, params, strict=True):
            if isinstance(source, str) and not decodes_videos():
                raise BadRequest(NOT_INSTALLED, param=param, code="unsupported_video")
            if not isinstance(source, str) and len(source) > self.limits.max_video_images:
                limit = f"{self.limits.max_video_images} (--max-video-images)"
                message = f"The video has {len(source)} pictures; the limit is {limit}"
                raise BadRequest(message, param=param, code="video_too_large")

    async def from_file(self, source: str, plan: PlanVideo, resample: int) -> Clip:
        """source: a data: or an http(s) URL, or the id of a file. resample: PIL's number. Raises BadRequest."""
        return await self.decoder.decode(await self._read(source), self.limits, plan, resample)

    async def _read(self, source: str) -> bytes:
        if isinstance(source, FileId):
            return await asyncio.to_thread(read_file, source, self.videos, VIDEO)
        if source[:5].lower() == "data:":
            return await asyncio.to_thread(decode_data_url, source, self.limits, VIDEO)
        return await fetch(parse_url(source, VIDEO), self.limits, self.network or Network(), VIDEO)

    async def from_pictures(
        self, sources: Sequence[str], fps: float | None, plan: PlanVideo, resample: int, param: str
    ) -> Clip:
        """fps: frames that were taken of a second. Raises BadRequest."""
        limits = msgspec.structs.replace(self.limits, max_images=len(sources))
        params = [f"{param}[{index}]" for index in range(len(sources))]
        pictures = await load_images(
            sources, limits, params, network=self.network, files=self.images, threads=self.threads
        )
        height, width = pictures[0].shape[:2]
        for picture, where in zip(pictures, params, strict=True):
            if picture.shape != pictures[0].shape:
                size = f"{picture.shape[1]} x {picture.shape[0]}"
                message = f"A video's frames are of one size: this is {size}, and the first {width} x {height}"
                raise BadRequest(message, param=where, code="invalid_video")
        made = plan(VideoSource(len(pictures), fps or DEFAULT_FPS, height, width, sampled=True))

        def resized() -> U8:
            return np.stack([resize(pictures[i], made.height, made.width, resample) for i in made.frames])

        return Clip(made, await asyncio.to_thread(resized))
