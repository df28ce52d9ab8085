"""The only place that opens a connection: resolve once, judge every answer, dial exactly what was judged."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import httpcore2

from opsin_server.errors import BadRequest
from opsin_server.media.allowed_addresses import dialable

# Addresses tried of one host, so that a dead first answer leaves time for the next within the same deadline.
MAX_TRIES = 4

# Of its own, so that lookups in a name server that never answers cannot take the threads that others need.
_LOOKUPS = ThreadPoolExecutor(max_workers=16, thread_name_prefix="opsin-lookup")


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host; none where it has none or the lookup failed."""
    lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.get_running_loop().run_in_executor(_LOOKUPS, lookup)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


@cache
def tls_context() -> ssl.SSLContext:
    """Made once: reading the system's certificates takes 10 ms or more."""
    return httpcore2.default_ssl_context()


@dataclass(frozen=True)
class Network:
    """What a fetch needs of the world; tests bring their own."""

    resolve: Callable[[str, int], Awaitable[Sequence[str]]] = resolve
    backend: httpcore2.AsyncNetworkBackend = field(default_factory=httpcore2.AnyIOBackend)
    tls: Callable[[], ssl.SSLContext] = tls_context


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Dials for httpcore, which passes the URL's own host here and keeps it for Host, SNI and the certificate."""

    def __init__(self, network: Network, allow: Sequence[str], seconds: float, refusal: BadRequest) -> None:
        """allow: private hosts that may be dialled all the same. seconds: for all tries of a host. refusal: of one that
        may not be."""
        self._network, self._allow, self._seconds, self._refusal = network, allow, seconds, refusal

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        answers = await self._network.resolve(host, port)
        addresses = [dialable(host, answer, self._allow) for answer in answers]
        # One private answer condemns the host, and an unknown host reads the same: else the difference would tell
        # a caller which names exist inside.
        if not addresses or None in addresses:
            raise self._refusal
        tries = [address for address in addresses if address is not None][:MAX_TRIES]
        failure: Exception = httpcore2.ConnectError()
        for address in tries:
            share = self._seconds / len(tries)
            try:
                return await self._network.backend.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure
