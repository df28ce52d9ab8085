"""A request's images, from their URLs to pixels."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from opsin_server.errors import BadRequest
from opsin_server.media.connect import Network
from opsin_server.media.data_url import decode_data_url
from opsin_server.media.decode import decode
from opsin_server.media.detect_format import read_still
from opsin_server.media.encoded_image import EncodedImage, check_size
from opsin_server.media.fetch import fetch
from opsin_server.media.file_id import FileId, ReadFile, read_file
from opsin_server.media.url import Url, parse_url
from opsin_server.media_limits import MediaLimits

# Of one request's images, so many are fetched and decoded at a time.
MAX_CONCURRENT = 8

# One pool for all requests: it bounds the memory of half-decoded pictures as well as the threads.
WORKERS = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="opsin-image")

_T = TypeVar("_T")


class Budget:
    """Pixels that the request's images may still have together."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limit = limits.max_request_pixels
        self._spent = 0

    def charge(self, still: EncodedImage) -> None:
        self._spent += still.width * still.height
        if self._spent > self._limit:
            limit = f"{self._limit:,} (--max-request-pixels)"
            message = f"The request's images have {self._spent:,} pixels together; the limit is {limit}"
            raise BadRequest(message, code="image_too_large")


async def load_images(
    sources: Sequence[str],
    limits: MediaLimits,
    params: Sequence[str] | None = None,
    *,
    network: Network | None = None,
    files: ReadFile | None = None,
    threads: ThreadPoolExecutor = WORKERS,
) -> list[npt.NDArray[np.uint8]]:
    """The pixels of each source, RGB U8 [H, W, 3], in order.

    A source is a data: or an http(s) URL, or the id of a file that `files` reads. `params[i]` is the JSON path to name
    when source i is refused. They are read and decoded in `threads`. Raises BadRequest; the other images' fetches have
    then ended, and a decoding that has begun runs out in its thread.
    """
    if len(sources) > limits.max_images:
        message = f"The request has {len(sources)} images; the limit is {limits.max_images} (--max-images)"
        raise BadRequest(message, param=params[limits.max_images] if params else None, code="too_many_images")
    plans = []
    for index, source in enumerate(sources):  # all of them before the first fetch: a bad one costs no work
        try:
            plans.append(_plan(source))
        except BadRequest as error:
            raise _placed(error, params, index) from None
    network = network or Network()
    budget = Budget(limits)
    gate = asyncio.Semaphore(MAX_CONCURRENT)

    async def load(index: int) -> npt.NDArray[np.uint8]:
        async with gate:
            try:
                still = await _read(plans[index], limits, network, files, threads)
                check_size(still, limits)
                budget.charge(still)
                return await _in_thread(threads, lambda: decode(still))
            except BadRequest as error:
                raise _placed(error, params, index) from None

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(load(index)) for index in range(len(plans))]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the first to fail; the group cancelled the rest
    return [task.result() for task in tasks]


def _plan(source: str) -> str | Url:
    return source if isinstance(source, FileId) or source[:5].lower() == "data:" else parse_url(source)


async def _read(
    plan: str | Url, limits: MediaLimits, network: Network, files: ReadFile | None, threads: ThreadPoolExecutor
) -> EncodedImage:
    if isinstance(plan, FileId):
        return await _in_thread(threads, lambda: read_still(read_file(plan, files)))
    if isinstance(plan, Url):
        data = await fetch(plan, limits, network)
        return await _in_thread(threads, lambda: read_still(data))
    return await _in_thread(threads, lambda: read_still(decode_data_url(plan, limits)))


async def _in_thread(threads: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)


def _placed(error: BadRequest, params: Sequence[str] | None, index: int) -> BadRequest:
    error.param = params[index] if params else None
    return error
