"""Fetching from real loopback servers: what is let through, and how each misbehaviour ends."""

import asyncio
import gzip
import ssl
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from opsin_server.errors import BadRequest
from opsin_server.media.connect import Network
from opsin_server.media.load_images import load_images
from opsin_server.media_limits import MediaLimits

ALLOW = ("127.0.0.1",)


@pytest.fixture
def png(kit) -> bytes:
    return kit.encode(kit.picture(), "PNG")


def get(kit, routes: dict, path: str = "/", host: str = "127.0.0.1", limits: MediaLimits | None = None, **options):
    """Starts a server with these routes and loads one image from it; returns (pixels or BadRequest, server)."""

    async def run():
        async with kit.Loopback(routes).running() as server:
            url = f"http://{host}:{server.port}{path}"
            try:
                return (await load_images([url], limits or MediaLimits(allow=ALLOW), **options))[0], server
            except BadRequest as error:
                return error, server

    return asyncio.run(run())


def test_an_allowed_host_works(kit, png) -> None:
    pixels, server = get(kit, {"/a/b.png?c=d": kit.http(png)}, "/a/b.png?c=d#fragment")
    assert np.array_equal(pixels, np.asarray(kit.picture()))
    (request,) = server.requests
    lines = request.decode().lower().split("\r\n")
    assert f"host: 127.0.0.1:{server.port}" in lines
    assert "accept-encoding: identity" in lines
    assert not any(line.startswith(("cookie:", "authorization:", "referer:")) for line in lines)


def test_an_allowed_name_is_resolved_and_sent_as_host(kit, png) -> None:
    pixels, server = get(kit, {"/": kit.http(png)}, host="LocalHost", limits=MediaLimits(allow=("localhost",)))
    assert pixels.shape == (23, 37, 3)
    assert f"Host: localhost:{server.port}".encode() in server.requests[0]


def test_without_allow_nothing_connects(kit, png) -> None:
    for host in ("127.0.0.1", "localhost"):
        error, server = get(kit, {"/": kit.http(png)}, host=host, limits=MediaLimits())
        assert error.code == "image_url_not_allowed"
        assert server.requests == []
        assert server.most_open == 0


def test_proxies_of_the_environment_are_ignored(kit, png, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    pixels, _ = get(kit, {"/": kit.http(png)})
    assert pixels.shape == (23, 37, 3)


@pytest.mark.parametrize(
    "kind", ["image/png", "IMAGE/JPEG; charset=x", "application/octet-stream", "binary/octet-stream", ""]
)
def test_content_decides_over_a_plausible_type(kit, png, kind: str) -> None:
    pixels, _ = get(kit, {"/": kit.http(png, kind=kind)})
    assert pixels.shape == (23, 37, 3)


def test_an_answer_without_length_and_in_chunks_works(kit, png) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(png[i : i + 99]), png[i : i + 99]) for i in range(0, len(png), 99))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for answer in (head + chunks + b"0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n" + png):
        pixels, _ = get(kit, {"/": answer})
        assert pixels.shape == (23, 37, 3)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_redirects_are_followed(kit, png, status: str) -> None:
    routes = {"/": kit.redirect("a/./b", status), "/a/b": kit.redirect("?q", status), "/a/b?q": kit.http(png)}
    pixels, server = get(kit, routes)
    assert pixels.shape == (23, 37, 3)
    assert len(server.requests) == 3


def test_a_redirect_may_lead_to_another_host_while_the_first_connection_stays_open(kit, png) -> None:
    async def bounce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        writer.write(kit.redirect(f"http://127.0.0.1:{port}/b").replace(b"Connection: close\r\n", b""))
        await silence(reader, writer)

    limits = MediaLimits(allow=("localhost", *ALLOW))
    pixels, server = get(kit, {"/": bounce, "/b": kit.http(png)}, host="localhost", limits=limits)
    assert pixels.shape == (23, 37, 3)
    assert b"Host: 127.0.0.1" in server.requests[1]


@pytest.mark.parametrize(("hops", "works"), [(5, True), (6, False)])
def test_at_most_five_redirects(kit, png, hops: int, works: bool) -> None:
    routes = {f"/{hop}": kit.redirect(f"/{hop + 1}") for hop in range(hops)}
    result, server = get(kit, {**routes, f"/{hops}": kit.http(png)}, "/0")
    assert isinstance(result, BadRequest) is not works
    assert len(server.requests) == 6


def test_a_redirect_loop_ends(kit) -> None:
    error, _ = get(kit, {"/": kit.redirect("/")})
    assert error.code == "image_fetch_failed"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/inner",  # the name is allowed, its address is not
        "//127.0.0.1:{port}/inner",
        "http://[::ffff:127.0.0.1]:{port}/inner",
        "http://2130706433:{port}/inner",
        "http://user@localhost:{port}/inner",
        "http://localhost:{port}\\@example.com/inner",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http:/inner",
        "http://[::1",
        "ht\ttp://localhost:{port}/inner",
    ],
)
def test_a_redirect_is_held_to_the_same_rules(kit, png, location: str) -> None:
    async def bounce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        writer.write(kit.redirect(location.format(port=port)))

    limits = MediaLimits(allow=("localhost",))
    error, server = get(kit, {"/": bounce, "/inner": kit.http(png)}, host="localhost", limits=limits)
    assert error.code in ("image_url_not_allowed", "image_fetch_failed")
    assert "127.0.0.1" not in error.message
    assert len(server.requests) == 1


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the client gives up


def drip(start: bytes, piece: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while not reader.at_eof():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    return serve


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "route",
    [
        pytest.param(silence, id="silent"),
        pytest.param(drip(b"", b"H"), id="status line"),
        pytest.param(drip(OK, b"X-Slow: 1\r\n"), id="headers"),
        pytest.param(drip(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), id="hints"),
        pytest.param(drip(OK + b"\r\n", b"\x89"), id="body to the end"),
        pytest.param(drip(OK + b"Content-Length: 9999\r\n\r\n", b"\x89"), id="body of a length"),
        pytest.param(drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), id="chunks"),
    ],
)
def test_a_slow_server_meets_the_deadline(kit, route) -> None:
    start = time.monotonic()
    error, _ = get(kit, {"/": route}, limits=MediaLimits(fetch_timeout=0.3, allow=ALLOW))
    assert 0.25 < time.monotonic() - start < 30  # (it would go on for ever)
    assert error.code == "image_fetch_failed"
    assert "0.3 s (--media-timeout)" in error.message


def test_the_deadline_spans_redirects_and_lookups(kit) -> None:
    async def bounce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        writer.write(kit.redirect("/"))

    async def never(host: str, port: int) -> list[str]:
        await asyncio.sleep(600)
        return []

    limits = MediaLimits(fetch_timeout=0.3, allow=ALLOW)
    for options in ({}, {"network": Network(resolve=never)}):
        start = time.monotonic()
        error, _ = get(kit, {"/": bounce}, limits=limits, **options)
        assert "--media-timeout" in error.message
        assert time.monotonic() - start < 30


def test_a_declared_length_over_the_limit_is_refused_unread(kit) -> None:
    sent = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 20971521\r\n\r\n")
        await silence(reader, writer)
        sent.append("cut")

    start = time.monotonic()
    error, _ = get(kit, {"/": serve})
    assert time.monotonic() - start < 30
    assert error.message == "The image is 20,971,521 bytes; the limit is 20,971,520 (--max-image-bytes)"
    assert error.code == "image_too_large"
    assert sent == ["cut"]


@pytest.mark.parametrize(
    ("head", "frame"), [(b"\r\n", b"%b"), (b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n%b\r\n")]
)
def test_an_endless_body_is_cut_at_the_limit(kit, head: bytes, frame: bytes) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + head)
        while True:
            writer.write(frame % bytes(65536))
            await writer.drain()
            sent += 65536

    error, _ = get(kit, {"/": serve}, limits=MediaLimits(max_image_bytes=2**20, allow=ALLOW))
    assert error.message == "The image is more than 1,048,576 bytes; the limit is 1,048,576 (--max-image-bytes)"
    assert sent < 2**20 + 12 * 2**20  # what the two sockets may hold


def test_a_body_in_single_bytes_is_cut(kit) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n" * 10_000)
            await writer.drain()

    error, _ = get(kit, {"/": serve})
    assert "100,000 pieces" in error.message


def answers(kit, png: bytes) -> dict[str, tuple[bytes, str, str]]:
    """name -> (answer, error code, a part of the message)"""
    bomb = gzip.compress(bytes(5_000_000))
    ok = "HTTP/1.1 200 OK\r\n"
    return {
        "404": (kit.http(b"", status="404 Not Found"), "image_fetch_failed", "status 404"),
        "500": (kit.http(png, status="500 Oops"), "image_fetch_failed", "status 500"),
        "204": (b"HTTP/1.1 204 No Content\r\n\r\n", "image_fetch_failed", "status 204"),
        "206": (kit.http(png, status="206 Partial"), "image_fetch_failed", "status 206"),
        "304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", "image_fetch_failed", "status 304"),
        "101": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", "image_fetch_failed", "no complete"),
        "401": (kit.http(b"", "WWW-Authenticate: Basic", status="401 No"), "image_fetch_failed", "status 401"),
        "no location": (kit.http(png, status="302 Found"), "image_fetch_failed", "status 302"),
        "html": (kit.http(b"<html>", kind="text/html"), "invalid_image", "'text/html'"),
        "json": (kit.http(b"{}", kind="application/json"), "invalid_image", "'application/json'"),
        "html as image": (kit.http(b"<!DOCTYPE html>"), "invalid_image", "HTML"),
        "svg": (kit.http(b"<svg/>", kind="image/svg+xml"), "invalid_image", "SVG"),
        "empty": (kit.http(b""), "invalid_image", "empty"),
        "gzip": (kit.http(gzip.compress(png), "Content-Encoding: gzip"), "image_fetch_failed", "compressed"),
        "gzip bomb": (kit.http(bomb, "Content-Encoding: gzip"), "image_fetch_failed", "compressed"),
        "br": (kit.http(png, "content-encoding: BR"), "image_fetch_failed", "compressed"),
        "transfer gzip": (f"{ok}Transfer-Encoding: gzip\r\n\r\n".encode(), "image_fetch_failed", "no complete"),
        "short": (f"{ok}Content-Length: 999999\r\n\r\n".encode() + png, "image_fetch_failed", "no complete"),
        "short, to the end": (ok.encode() + b"\r\n" + png[:-30], "invalid_image", "truncated"),
        "bad length": (f"{ok}Content-Length: -1\r\n\r\n".encode(), "image_fetch_failed", "no complete"),
        "length of 5000 digits": (
            f"{ok}Content-Length: {'9' * 5000}\r\n\r\n".encode(),
            "image_fetch_failed",
            "no complete",
        ),
        "two lengths": (
            f"{ok}Content-Length: 1\r\nContent-Length: 2\r\n\r\n".encode(),
            "image_fetch_failed",
            "no complete",
        ),
        "bad chunk": (
            f"{ok}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode(),
            "image_fetch_failed",
            "no complete",
        ),
        "huge header": (f"{ok}X: {'x' * 200_000}\r\n\r\n".encode(), "image_fetch_failed", "no complete"),
        "not http": (b"SSH-2.0-OpenSSH_9.6\r\n", "image_fetch_failed", "no complete"),
        "nothing": (b"", "image_fetch_failed", "no complete"),
    }


def test_bad_answers(kit, png) -> None:
    for name, (answer, code, text) in answers(kit, png).items():
        error, _ = get(kit, {"/": answer})
        assert isinstance(error, BadRequest), name
        assert (error.code, error.status) == (code, 400), (name, error.message)
        assert text in error.message, name


def test_a_closed_port_does_not_tell_the_address(kit) -> None:
    async def run() -> BadRequest:
        async with kit.Loopback({}).running() as server:
            port = server.port
        with pytest.raises(BadRequest) as caught:
            await load_images([f"http://localhost:{port}/"], MediaLimits(allow=("localhost",)))
        return caught.value

    error = asyncio.run(run())
    assert error.code == "image_fetch_failed"
    assert error.message == "The image could not be fetched from localhost: the connection was refused"
    assert "127.0.0.1" not in error.message
    assert "::1" not in error.message


def test_the_next_address_is_tried_when_one_is_dead(kit, png) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.9", "127.0.0.1"]  # the server listens on the second only

    limits = MediaLimits(allow=("two.test",))
    pixels, _ = get(kit, {"/": kit.http(png)}, host="two.test", limits=limits, network=Network(resolve=resolve))
    assert pixels.shape == (23, 37, 3)


@pytest.mark.parametrize(
    ("host", "trusted", "works"),
    [("images.test", True, True), ("images.test", False, False), ("other.test", True, False)],
)
def test_certificates_are_checked_against_the_urls_host(kit, png, host: str, trusted: bool, works: bool) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(kit.pem)
    trusting = ssl.create_default_context(cafile=kit.pem)

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    network = Network(resolve=resolve, tls=lambda: trusting) if trusted else Network(resolve=resolve)

    async def run() -> None:
        async with kit.Loopback({"/": kit.http(png)}).running(serving) as server:
            loading = load_images([f"https://{host}:{server.port}/"], MediaLimits(allow=(host,)), network=network)
            if works:
                assert (await loading)[0].shape == (23, 37, 3)
            else:
                with pytest.raises(BadRequest) as caught:
                    await loading
                assert caught.value.code == "image_fetch_failed"
                assert server.requests == []

    asyncio.run(run())
