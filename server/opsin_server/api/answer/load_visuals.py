"""The pictures and videos of conversations, loaded."""

from __future__ import annotations

from collections.abc import Sequence

from opsin_plugins.spec import U8, Clip
from opsin_server.api.services import Services
from opsin_server.errors import BadRequest
from opsin_server.ipc.messages import Ready
from opsin_server.media.load_images import load_images
from opsin_server.media.load_videos import VideoLoader
from opsin_server.text.conversation import ImagePart, VideoPart


async def load_visuals(parts: Sequence[ImagePart | VideoPart], services: Services) -> list[U8 | Clip]:
    """In their order. Raises BadRequest."""
    media, files = services.config.media, services.files
    images = [part for part in parts if isinstance(part, ImagePart)]
    videos = [part for part in parts if isinstance(part, VideoPart)]
    loader = VideoLoader(media, services.videos, files.read_video, files.read_image, threads=services.image_threads)
    loader.check([video.source for video in videos], [video.param for video in videos])
    sources, params = [image.source for image in images], [image.param for image in images]
    pixels = iter(await load_images(sources, media, params, files=files.read_image, threads=services.image_threads))
    clips = iter([await _clip(video, loader, services) for video in videos])  # (one at a time: each may be large)
    return [next(pixels) if isinstance(part, ImagePart) else next(clips) for part in parts]


def max_video_tokens(engine: Ready) -> int:
    """Visual tokens of one video for which there is room."""
    return engine.memory.room_for_video(engine.max_context)


async def _clip(part: VideoPart, loader: VideoLoader, services: Services) -> Clip:
    encoder = services.encoder
    assert encoder.spec.video is not None
    resample = encoder.spec.video.resample
    try:
        if isinstance(part.source, str):
            return await loader.from_file(part.source, lambda source: encoder.plan_video(source, part), resample)
        return await loader.from_pictures(
            part.source, part.budget.fps, lambda source: encoder.plan_video(source, part), resample, part.param
        )
    except BadRequest as error:
        error.param = error.param or part.param
        raise
