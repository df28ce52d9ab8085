"""What the media tests share: small files of every format, an Internet that is not there, and a loopback server."""

import asyncio
import base64
import io
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import AI_NUMERICHOST, SOCK_STREAM, gaierror, getaddrinfo

import httpcore2
import numpy as np
import pytest
from PIL import Image

from opsin_server.media.connect import Network

PUBLIC = "93.184.216.34"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_png(size, depth, color, rows: bytes, before: bytes = b"", after: bytes = b"", interlace: int = 0) -> bytes:
    """A PNG from raw filtered rows, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, interlace)
    chunks = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", zlib.compress(rows)) + after
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


def encode(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def as_data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def picture(width: int = 37, height: int = 23, seed: int = 0) -> Image.Image:
    """Smooth with some noise, no symmetry: any turn or swap shows."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 20, (height, width, 3))
    base = np.stack([x * 200 // width, y * 200 // height, (x + 2 * y) * 70 // (width + height)], -1)
    return Image.fromarray((base + noise).astype(np.uint8))


def valid_files() -> dict[str, bytes]:
    """One of each kind that must decode."""
    rgb = picture()
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(np.linspace(0, 255, 37 * 23).astype(np.uint8).reshape(23, 37)))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [picture(seed=seed) for seed in range(4)]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 50}
    return {
        "png": encode(rgb, "PNG"),
        "png-grey": encode(rgb.convert("L"), "PNG"),
        "png-bilevel": encode(rgb.convert("1"), "PNG"),
        "png-palette": encode(rgb.convert("P"), "PNG"),
        "png-rgba": encode(alpha, "PNG"),
        "png-la": encode(alpha.convert("LA"), "PNG"),
        "png-exif": encode(rgb, "PNG", exif=exif),
        "apng": encode(frames[0], "PNG", **animated),
        "jpeg": encode(rgb, "JPEG"),
        "jpeg-progressive": encode(rgb, "JPEG", progressive=True),
        "jpeg-grey": encode(rgb.convert("L"), "JPEG"),
        "jpeg-cmyk": encode(rgb.convert("CMYK"), "JPEG"),
        "jpeg-exif": encode(rgb, "JPEG", exif=exif),
        "webp": encode(rgb, "WEBP"),
        "webp-lossless": encode(rgb, "WEBP", lossless=True),
        "webp-alpha": encode(alpha, "WEBP"),
        "webp-exif": encode(rgb, "WEBP", exif=exif),
        "webp-animated": encode(frames[0], "WEBP", **animated),
        "gif": encode(rgb.convert("P"), "GIF"),
        "gif-interlaced": encode(rgb.convert("P"), "GIF", interlace=1),
        "gif-animated": encode(frames[0], "GIF", **animated),
    }


@dataclass
class FakeInternet(httpcore2.AsyncNetworkBackend):
    """Answers every lookup and every connection itself, and writes down which were made."""

    names: dict[str, list[list[str]]]  # host -> what its first, second, ... lookup answers; the last one stays
    answer: Callable[[str, bytes], bytes]  # (address, request) -> response
    lookups: list[str] = field(default_factory=list)
    dialed: list[str] = field(default_factory=list)
    tls_names: list[str | None] = field(default_factory=list)

    def network(self) -> Network:
        return Network(resolve=self.resolve, backend=self)

    async def resolve(self, host: str, port: int) -> list[str]:
        self.lookups.append(host)
        if answers := self.names.get(host):
            return answers.pop(0) if len(answers) > 1 else answers[0]
        try:  # what the C library makes of the odd spellings of an address
            return [found[4][0] for found in getaddrinfo(host, port, type=SOCK_STREAM, flags=AI_NUMERICHOST)]
        except gaierror:
            return []

    async def connect_tcp(self, host, port, *_, **__):
        self.dialed.append(host)
        return FakeStream(self, host)


class FakeStream(httpcore2.AsyncNetworkStream):
    def __init__(self, internet: FakeInternet, address: str) -> None:
        self.internet, self.address = internet, address
        self.request = b""
        self.sent = False

    async def read(self, max_bytes: int, *_, **__) -> bytes:
        if self.sent:
            return b""
        self.sent = True
        return self.internet.answer(self.address, self.request)

    async def write(self, buffer: bytes, *_, **__) -> None:
        self.request += buffer

    async def start_tls(self, ssl_context, server_hostname=None, *_, **__):
        self.internet.tls_names.append(server_hostname)
        return self

    async def aclose(self) -> None:
        pass


@dataclass
class Loopback:
    """A real server on 127.0.0.1: `routes` gives each path's answer, as bytes or as a coroutine that writes it."""

    routes: dict[str, bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]]
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    open: int = 0
    most_open: int = 0

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext | None = None) -> AsyncIterator["Loopback"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
            await self.all_closed()
        finally:
            server.close()
            await server.wait_closed()

    async def all_closed(self) -> None:
        """Fails if the client leaves a connection open or a task running."""
        async with asyncio.timeout(60):
            while self.open or len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.005)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            answer = self.routes[head.split()[1].decode()]
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


def http(body: bytes, *headers: str, status: str = "200 OK", kind: str = "image/png") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return http(b"", f"Location: {location}", status=status)


class Helpers:
    """One name for the lot: pytest's importlib mode lets a test module import nothing from beside it."""

    PUBLIC = PUBLIC
    FakeInternet = FakeInternet
    Loopback = Loopback
    pem = Path(__file__).with_name("loopback.pem")  # a certificate for images.test, for tests alone
    as_data_url = staticmethod(as_data_url)
    encode = staticmethod(encode)
    http = staticmethod(http)
    make_png = staticmethod(make_png)
    picture = staticmethod(picture)
    png_chunk = staticmethod(png_chunk)
    redirect = staticmethod(redirect)
    valid_files = staticmethod(valid_files)


@pytest.fixture(scope="session")
def kit() -> type[Helpers]:
    return Helpers
