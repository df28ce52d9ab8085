"""A whole request: limits before work, order, concurrency, and nothing left when it ends early."""

import asyncio
import gc

import numpy as np
import pytest
from PIL import Image

from opsin_server.errors import BadRequest
from opsin_server.media import load_images as load
from opsin_server.media.load_images import load_images
from opsin_server.media_limits import MediaLimits

ALLOW = ("127.0.0.1",)


def colored(kit, shade: int, size: int = 10) -> bytes:
    return kit.encode(Image.new("RGB", (size, size), (shade, 0, 0)), "PNG")


def test_images_come_back_in_order_and_ready_for_use(kit) -> None:
    files = kit.valid_files()
    sources = [kit.as_data_url(data) for data in files.values()]
    images = asyncio.run(load_images(sources, MediaLimits()))
    for pixels, name in zip(images, files, strict=True):
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.shape == ((37, 23, 3) if "exif" in name else (23, 37, 3)), name


def test_no_images_is_no_error() -> None:
    assert asyncio.run(load_images([], MediaLimits())) == []


def test_eight_are_fetched_at_a_time_and_order_is_kept(kit) -> None:
    async def run() -> None:
        routes = {}
        for shade in range(20):

            async def serve(reader, writer, shade=shade) -> None:
                await asyncio.sleep(0.02 * (3 - shade % 3))  # they end out of order
                writer.write(kit.http(colored(kit, shade)))

            routes[f"/{shade}"] = serve
        async with kit.Loopback(routes).running() as server:
            urls = [f"http://127.0.0.1:{server.port}/{shade}" for shade in range(20)]
            images = await load_images(urls, MediaLimits(allow=ALLOW))
            assert [pixels[0, 0, 0] for pixels in images] == list(range(20))
            assert 4 <= server.most_open <= load.MAX_CONCURRENT

    asyncio.run(run())


@pytest.mark.parametrize(
    ("bad", "code", "text"),
    [
        ("file:///etc/passwd", "image_url_not_allowed", "http://"),
        ("http://user@host/", "image_url_not_allowed", "user name"),
    ],
)
def test_a_bad_source_is_refused_before_any_fetch(kit, bad: str, code: str, text: str) -> None:
    async def run() -> None:
        async with kit.Loopback({"/": kit.http(colored(kit, 1))}).running() as server:
            good = f"http://127.0.0.1:{server.port}/"
            with pytest.raises(BadRequest, match=text) as caught:
                await load_images([good, good, bad], MediaLimits(allow=ALLOW), ["a", "b", "c"])
            assert (caught.value.code, caught.value.param) == (code, "c")
            assert server.requests == []

    asyncio.run(run())


def test_too_many_images_are_refused_before_any_fetch(kit) -> None:
    async def run() -> None:
        async with kit.Loopback({"/": kit.http(colored(kit, 1))}).running() as server:
            limits = MediaLimits(max_images=2, allow=ALLOW)
            with pytest.raises(BadRequest) as caught:
                await load_images([f"http://127.0.0.1:{server.port}/"] * 3, limits, ["a", "b", "c"])
            assert caught.value.message == "The request has 3 images; the limit is 2 (--max-images)"
            assert (caught.value.code, caught.value.param) == ("too_many_images", "c")
            assert server.requests == []

    asyncio.run(run())


def test_the_pixels_of_a_request_are_summed_before_decoding(kit, monkeypatch) -> None:
    decoded = []
    monkeypatch.setattr(load, "decode", lambda still: decoded.append(still) or np.zeros((10, 10, 3), np.uint8))
    sources = [kit.as_data_url(colored(kit, shade)) for shade in range(3)]
    with pytest.raises(BadRequest) as caught:
        asyncio.run(load_images(sources, MediaLimits(max_request_pixels=299)))
    limit = "the limit is 299 (--max-request-pixels)"
    assert caught.value.message == f"The request's images have 300 pixels together; {limit}"
    assert caught.value.code == "image_too_large"
    assert len(decoded) <= 2
    assert len(asyncio.run(load_images(sources, MediaLimits(max_request_pixels=300)))) == 3


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def test_one_bad_image_ends_the_others(kit) -> None:
    async def run() -> None:
        routes = {"/silent": silence, "/missing": kit.http(b"", status="404 Not Found")}
        async with kit.Loopback(routes).running() as server:
            base = f"http://127.0.0.1:{server.port}"
            async with asyncio.timeout(2):
                with pytest.raises(BadRequest, match="404") as caught:
                    await load_images([f"{base}/silent"] * 3 + [f"{base}/missing"], MediaLimits(allow=ALLOW), "abcd")
            assert caught.value.param == "d"
            await server.all_closed()

    asyncio.run(run())


@pytest.mark.parametrize("stage", ["lookup", "connected", "headers", "body"])
def test_cancelling_leaves_nothing(kit, stage: str) -> None:
    """Whatever was under way: no task, no socket, no warning about either."""

    async def run() -> None:
        reached = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if stage != "connected":
                writer.write(b"HTTP/1.1 200 OK\r\n")
            if stage == "body":
                writer.write(b"Content-Length: 5000\r\n\r\n" + bytes(2000))
            await writer.drain()
            reached.set()
            await silence(reader, writer)

        async def stuck(host: str, port: int) -> list[str]:
            reached.set()
            await asyncio.sleep(60)
            return []

        network = load.Network(resolve=stuck) if stage == "lookup" else None
        async with kit.Loopback({"/": serve}).running() as server:
            urls = [f"http://127.0.0.1:{server.port}/"] * 3
            task = asyncio.create_task(load_images(urls, MediaLimits(allow=ALLOW), network=network))
            await reached.wait()
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.all_closed()

    asyncio.run(run())
    gc.collect()  # an unclosed transport would warn here, and pytest makes that an error


def test_a_failure_of_ours_is_not_blamed_on_the_caller(kit, monkeypatch) -> None:
    def broken(still: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(load, "decode", broken)
    with pytest.raises(RuntimeError, match="ours"):
        asyncio.run(load_images([kit.as_data_url(colored(kit, 1))], MediaLimits()))
