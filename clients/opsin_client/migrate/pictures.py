"""Pictures behind URLs that stand in a stranger's rows: fetched from public addresses alone, and only pictures."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpcore2
import httpx2

from opsin_client.public_addresses import is_public, read_address

MOST_BYTES = 20 * 2**20
MOST_REDIRECTS = 5
SECONDS = 30.0
REDIRECTS = (301, 302, 303, 307, 308)
Resolve = Callable[[str, int], Sequence[str]]


class NoPictureError(Exception):
    """The message says why, for the table that lists it."""


def fetch_picture(url: str, allow: Sequence[str] = (), resolve: Resolve | None = None) -> tuple[bytes, str]:
    """Its bytes, and png, jpeg, gif or webp. allow: hosts that may have a private address. Raises NoPictureError."""
    backend = _PublicBackend(frozenset(host.lower() for host in allow), resolve or addresses_of)
    end = time.monotonic() + SECONDS
    try:
        with httpcore2.ConnectionPool(
            ssl_context=httpcore2.default_ssl_context(), max_connections=1, network_backend=backend
        ) as pool:
            data = _followed(pool, url, end)
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as error:
        raise NoPictureError(f"no complete answer ({type(error).__name__})") from None
    return data, kind_of(data)


def kind_of(data: bytes) -> str:
    """By what it begins with. Raises NoPictureError."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise NoPictureError("what came is no PNG, JPEG, GIF or WEBP")


def addresses_of(host: str, port: int) -> Sequence[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def _followed(pool: httpcore2.ConnectionPool, url: str, end: float) -> bytes:
    for _ in range(MOST_REDIRECTS + 1):
        parsed = _parsed(url)
        headers = [("Host", parsed.netloc.decode("ascii")), ("Accept", "image/*"), ("User-Agent", "opsin")]
        with pool.stream("GET", str(parsed), headers=headers, extensions=_timeouts(end)) as response:
            location = next((value for name, value in response.headers if name.lower() == b"location"), b"")
            if response.status not in REDIRECTS or not location:
                return _body(response, end)
            try:
                url = str(parsed.join(location.decode("ascii")))
            except (ValueError, httpx2.InvalidURL):
                raise NoPictureError("it redirects to what is no URL") from None
    raise NoPictureError(f"it redirects more than {MOST_REDIRECTS} times")


def _parsed(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        raise NoPictureError("it is no URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise NoPictureError("it is no http(s) URL")
    return parsed.copy_with(userinfo=b"", fragment=None)


def _body(response: httpcore2.Response, end: float) -> bytes:
    if response.status != 200:
        raise NoPictureError(f"HTTP {response.status}")
    data = bytearray()
    for chunk in response.iter_stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise NoPictureError(f"it has more than {MOST_BYTES:,} bytes")
        if time.monotonic() > end:
            raise NoPictureError(f"it took more than {SECONDS:.0f} s")
    return bytes(data)


def _timeouts(end: float) -> dict[str, Any]:
    left = max(0.1, end - time.monotonic())
    return {"timeout": {"connect": left, "read": left, "write": left, "pool": left}}


class _PublicBackend(httpcore2.NetworkBackend):
    """Dials what was judged, and judges what every name means when it is dialled: redirects, too."""

    def __init__(self, allow: frozenset[str], resolve: Resolve) -> None:
        self._allow, self._resolve, self._sockets = allow, resolve, httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        found = self._resolve(host, port)
        if not found or not (host.lower() in self._allow or all(map(_public, found))):
            raise NoPictureError("its host is unknown, or its address is not public (--allow-host opens one)")
        return self._sockets.connect_tcp(found[0], port, timeout, local_address, socket_options)


def _public(text: str) -> bool:
    address = read_address(text)
    return address is not None and is_public(address)
