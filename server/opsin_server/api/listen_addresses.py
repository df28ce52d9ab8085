"""Where a server listens: what --host means, who can reach it there, and the sockets."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from opsin_server.config import ServerConfig
from opsin_server.errors import ConfigError

BACKLOG = 2048
DEAD_PEER_SECONDS = 60  # a client that reads nothing, or has vanished, is disconnected after this
PORT_TRIES = 20  # with --port 0, for a port that is free on every address
ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # a kernel without IPv6, an interface without it


class Address(NamedTuple):
    family: socket.AddressFamily
    host: str  # in digits
    scope: int  # of a link-local one: the number of its interface

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return ipaddress.ip_address(self.host)

    def at(self, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
        return (self.host, port) if self.family == socket.AF_INET else (self.host, port, 0, self.scope)


def addresses(host: str) -> tuple[Address, ...]:
    """All that a --host stands for: an address in any notation, with brackets or without, or a name. Raises
    ConfigError."""
    name = host[1:-1] if host.startswith("[") and host.endswith("]") and ":" in host else host
    if name in ("", "*"):
        raise ConfigError(f"--host {host!r} is no address: 0.0.0.0 listens on all of IPv4, :: on all of both")
    if name.rstrip(".").lower() == "localhost":
        return (*_resolved(host, "127.0.0.1"), *_resolved(host, "::1"))  # whatever /etc/hosts has of it
    return _resolved(host, name)


def _resolved(host: str, name: str) -> tuple[Address, ...]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror}") from None
    except UnicodeError:
        raise ConfigError(f"--host {host} is neither an address nor a name that could have one") from None
    known = (socket.AF_INET, socket.AF_INET6)
    # A name may have an address twice.
    return tuple(dict.fromkeys(_address(host, family, sockaddr) for family, *_, sockaddr in found if family in known))


def _address(host: str, family: socket.AddressFamily, sockaddr: Sequence[Any]) -> Address:
    digits, scope = str(sockaddr[0]).partition("%")[0], 0
    ip = ipaddress.ip_address(digits)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return Address(socket.AF_INET, str(ip.ipv4_mapped), 0)
        scope = sockaddr[3]
        if ip.is_link_local and not scope:
            raise ConfigError(f"--host {host} is an address of one link: name its interface, as in {digits}%eth0")
    return Address(family, digits, scope)


def check_guarded(config: ServerConfig, where: Sequence[Address]) -> None:
    """Raises ConfigError for an address that others can reach while no key is set."""
    if config.api_keys or config.allow_remote_without_key or all(address.ip.is_loopback for address in where):
        return
    raise ConfigError(
        f"--host {config.host} is reachable from outside and no key is set: give --api-key, or "
        "--allow-remote-without-key if something in front of it asks for one"
    )


def bind(where: Sequence[Address], port: int) -> list[socket.socket]:
    """Listening sockets, one an address, all on the same port. An address that this machine lacks is left out as long
    as there is another. Raises ConfigError in one sentence."""
    for attempt in range(PORT_TRIES):
        listeners: list[socket.socket] = []
        try:
            _bind_all(where, port, listeners)
        except OSError as error:
            for listener in listeners:
                listener.close()
            if error.errno == errno.EADDRINUSE and port == 0 and attempt + 1 < PORT_TRIES:
                continue
            raise _refusal(error, where, port) from None
        return listeners
    raise AssertionError("the last attempt returns or raises")


def _bind_all(where: Sequence[Address], port: int, listeners: list[socket.socket]) -> None:
    absent: OSError | None = None
    for address in where:
        try:
            listeners.append(_listener(address, port))
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            absent = error
            continue
        port = listeners[0].getsockname()[1]
    if not listeners and absent is not None:
        raise absent


def _listener(address: Address, port: int) -> socket.socket:
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:  # whatever the machine's default is, :: means both families
            with suppress(OSError):
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not address.ip.is_unspecified))
        _notice_dead_peers(listener, DEAD_PEER_SECONDS)
        listener.bind(address.at(port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _refusal(error: OSError, where: Sequence[Address], port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} is in use; give --port")
    hosts = ", ".join(address.host for address in where)
    return ConfigError(f"cannot listen on {hosts} port {port}: {error.strerror}")


def _notice_dead_peers(listener: socket.socket, seconds: int) -> None:
    """Connections inherit this. A stream to such a peer would hold its place for ever."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", max(1, seconds // 2)),
        ("TCP_KEEPINTVL", max(1, seconds // 6)),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", seconds * 1000),
    ):
        if hasattr(socket, name):  # Linux has all four
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def url_of(listener: socket.socket) -> str:
    """What to type on this machine."""
    host, port, *rest = listener.getsockname()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    if listener.family == socket.AF_INET:
        return f"http://{host}:{port}"
    zone = f"%25{socket.if_indextoname(rest[1])}" if rest[1] else ""  # (RFC 6874)
    return f"http://[{host.partition('%')[0]}{zone}]:{port}"
