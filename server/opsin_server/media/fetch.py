"""One http(s) image or video, fetched under a deadline, a size limit and the rules of connect.py."""

import asyncio
from contextlib import aclosing

import httpcore2

from opsin_server.media.connect import CheckedBackend, Network
from opsin_server.media.media_kind import IMAGE, MediaKind
from opsin_server.media.url import Url, join_url
from opsin_server.media_limits import MediaLimits

MAX_REDIRECTS = 5
NOT_PUBLIC = "The {noun}'s host is unknown, or its address is not public (--media-allow opens private ones)"
# A body of one-byte chunks costs 10 us each in the HTTP parser, 64 KB of them 0.3 s in which the event loop does
# nothing else; real servers send kilobytes.
MAX_PIECES = 100_000
YIELD_EVERY = 256

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What object stores say of a file whose type they were not told.
_UNTYPED = frozenset({"", "application/octet-stream", "binary/octet-stream"})


async def fetch(url: Url, limits: MediaLimits, network: Network, kind: MediaKind = IMAGE) -> bytes:
    """The bytes at `url`, redirects followed. Raises BadRequest; its text names only the host that the caller wrote."""
    try:
        async with asyncio.timeout(limits.fetch_timeout):
            return await _follow(url, limits, network, kind)
    except TimeoutError:
        limit = f"{limits.fetch_timeout:g} s (--media-timeout)"
        raise kind.failed(f"Fetching the {kind.noun} from {url.host} took longer than the limit of {limit}") from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
        why = "the connection was refused" if _is_refused(error) else "no complete HTTP answer"
        raise kind.failed(f"The {kind.noun} could not be fetched from {url.host}: {why}") from None


def _is_refused(failure: BaseException | None) -> bool:
    """The library says that there is no connection, and the failures that it comes from say why."""
    while failure is not None and not isinstance(failure, ConnectionRefusedError):
        failure = failure.__cause__ or failure.__context__
    return failure is not None


async def _follow(url: Url, limits: MediaLimits, network: Network, kind: MediaKind) -> bytes:
    # A pool of its own for each fetch: nothing is shared between callers, and leaving the block closes every socket.
    backend = CheckedBackend(
        network, limits.allow, limits.fetch_timeout, kind.refused(NOT_PUBLIC.format(noun=kind.noun))
    )
    async with httpcore2.AsyncConnectionPool(
        ssl_context=network.tls(), max_connections=1, network_backend=backend
    ) as pool:
        for _ in range(MAX_REDIRECTS + 1):
            async with pool.stream("GET", _address(url), headers=_headers(url, kind)) as response:
                location = _header(response, b"location")
                if response.status not in _REDIRECTS or not location:
                    return await _body(response, limits, kind)
                url = join_url(url, location, kind)
        raise kind.failed(f"The {kind.noun} URL redirects more than {MAX_REDIRECTS} times")


async def _body(response: httpcore2.Response, limits: MediaLimits, kind: MediaKind) -> bytes:
    if response.status != 200:
        raise kind.failed(f"The {kind.noun}'s server answered with status {response.status}")
    found = _header(response, b"content-type").decode("latin-1").partition(";")[0].strip().lower()
    if found not in _UNTYPED and not found.startswith(f"{kind.noun}/"):
        raise kind.invalid(f"The {kind.noun} URL answers with {found[:60]!r}, not {kind.some}")
    # Asked for identity; whoever compresses all the same could make much of little.
    if _header(response, b"content-encoding").lower() not in (b"", b"identity"):
        raise kind.failed(f"The {kind.noun}'s server answered with a compressed body, which is not accepted")
    declared = _header(response, b"content-length")
    most = kind.max_bytes(limits)
    if declared.isdigit() and int(declared) > most:
        raise kind.too_many_bytes(f"{int(declared):,}", limits)
    body = bytearray()
    pieces = 0
    async with aclosing(response.aiter_stream()) as stream:
        async for piece in stream:
            body += piece
            pieces += 1
            if len(body) > most:
                raise kind.too_many_bytes(f"more than {most:,}", limits)
            if pieces > MAX_PIECES:
                raise kind.failed(f"The {kind.noun}'s server sent its answer in more than {MAX_PIECES:,} pieces")
            if pieces % YIELD_EVERY == 0:
                await asyncio.sleep(0)
    return bytes(body)


def _address(url: Url) -> httpcore2.URL:
    return httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)


def _headers(url: Url, kind: MediaKind) -> list[tuple[bytes | str, bytes | str]]:
    return [
        ("Host", url.authority),
        ("Accept", f"{kind.noun}/*"),
        ("Accept-Encoding", "identity"),
        ("User-Agent", "opsin"),
    ]


def _header(response: httpcore2.Response, name: bytes) -> bytes:
    return next((value.strip() for key, value in response.headers if key.lower() == name), b"")
