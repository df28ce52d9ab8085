"""What --host means, who can reach it, and where a server listens then."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from opsin_server.api import listen_addresses as listeners
from opsin_server.api.listen_addresses import addresses, bind, check_guarded, url_of
from opsin_server.config import EngineConfig, ServerConfig
from opsin_server.errors import ConfigError


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")


@contextmanager
def listening(host: str, port: int = 0) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(listener) for listener in bind(addresses(host), port)]


def guard(host: str, **changes: object) -> None:
    config = ServerConfig(EngineConfig("none"), host=host, **changes)
    check_guarded(config, addresses(host))


def reach(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


LOOPBACK = {
    "127.0.0.1": "127.0.0.1",
    "127.0.0.2": "127.0.0.2",
    "127.1": "127.0.0.1",
    "2130706433": "127.0.0.1",
    "::1": "[::1]",
    "[::1]": "[::1]",
    "0:0:0:0:0:0:0:1": "[::1]",
    "::ffff:127.0.0.1": "127.0.0.1",
    "[::ffff:7f00:1]": "127.0.0.1",
    "localhost": "127.0.0.1",
    "LOCALHOST.": "127.0.0.1",
}


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_in_all_its_forms_needs_no_key(host: str) -> None:
    guard(host)
    if "[" in LOOPBACK[host] and not has_ipv6():
        pytest.skip("no IPv6 loopback")
    with listening(host) as found:
        port = found[0].getsockname()[1]
        assert url_of(found[0]) == f"http://{LOOPBACK[host]}:{port}"
        assert reach(LOOPBACK[host].strip("[]"), port)


OPEN = ["0.0.0.0", "0", "::", "[::]", "::0", "::ffff:0.0.0.0", "192.0.2.1", "2001:db8::1", "[2001:db8::1]"]


@pytest.mark.parametrize("host", [*OPEN, "::ffff:192.0.2.1", "fe80::1%lo"])
def test_all_else_needs_one(host: str) -> None:
    with pytest.raises(ConfigError, match="is reachable from outside and no key is set"):
        guard(host)
    guard(host, api_keys=("key",))
    guard(host, allow_remote_without_key=True)


@pytest.mark.parametrize("answers", [["127.0.0.1"], ["127.0.0.1", "127.0.0.9", "::1"]])
def test_a_name_is_where_it_resolves_to(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    resolved(monkeypatch, answers)
    guard("name.test")
    resolved(monkeypatch, [*answers, "192.0.2.1"])  # one that can be reached is enough
    with pytest.raises(ConfigError, match=r"--host name\.test is reachable from outside"):
        guard("name.test")


def resolved(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    real = socket.getaddrinfo

    def answer(host: str, *arguments: object, **options: object) -> list[object]:
        names = answers if host == "name.test" else [host]
        return [entry for name in names for entry in real(name, *arguments, **options)]

    monkeypatch.setattr(listeners.socket, "getaddrinfo", answer)


@IPV6
def test_localhost_is_both_families_on_one_port() -> None:
    with listening("localhost") as found:
        ports = {listener.getsockname()[1] for listener in found}
        assert len(found) == 2
        assert len(ports) == 1
        assert all(reach(host, *ports) for host in ("127.0.0.1", "::1"))


@IPV6
def test_a_free_port_is_free_in_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first port that the system offers is taken on ::1."""
    real, taken = listeners._listener, []

    def listener(address: listeners.Address, port: int) -> socket.socket:
        if address.host == "::1" and not taken:
            taken.append(port)
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return real(address, port)

    monkeypatch.setattr(listeners, "_listener", listener)
    with listening("localhost") as found:
        assert [entry.getsockname()[1] for entry in found] == [found[0].getsockname()[1]] * 2
    assert taken


def test_localhost_without_ipv6_is_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def lacking(family: int, *arguments: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments)

    monkeypatch.setattr(listeners.socket, "socket", lacking)
    with listening("localhost") as found:
        assert [listener.getsockname()[0] for listener in found] == ["127.0.0.1"]
    with pytest.raises(ConfigError, match="cannot listen on ::1 port 0: Address family not supported"):
        bind(addresses("::1"), 0)


@IPV6
def test_every_address_of_both_families_is_one_socket() -> None:
    with listening("::") as found:
        (listener,) = found
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://[::1]:{port}"
        assert all(reach(host, port) for host in ("127.0.0.1", "::1"))


def test_every_address_of_ipv4() -> None:
    with listening("0.0.0.0") as found:
        assert url_of(found[0]) == f"http://127.0.0.1:{found[0].getsockname()[1]}"


def test_a_busy_port_is_one_sentence() -> None:
    with listening("127.0.0.1") as found:
        port = found[0].getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(ConfigError, match=f"^port {port} is in use; give --port$"):
                bind(addresses(host), port)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("", "--host '' is no address"),
        ("*", r"--host '\*' is no address"),
        ("no.such.host.invalid", r"--host no\.such\.host\.invalid: "),
        ("a..b", r"--host a\.\.b is neither an address nor a name"),
        ("x" * 70, "is neither an address nor a name"),
        ("[localhost]", r"--host \[localhost\]: "),
        ("::1%nowhere", r"--host ::1%nowhere: "),
        ("fe80::1", "fe80::1 is an address of one link: name its interface, as in fe80::1%eth0"),
        ("192.0.2.1", r"cannot listen on 192\.0\.2\.1 port 0"),
    ],
)
def test_what_is_no_host_is_one_sentence(host: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bind(addresses(host), 0)


def test_a_zone_stands_in_the_url() -> None:
    class Linked:
        family = socket.AF_INET6

        def getsockname(self) -> tuple[str, int, int, int]:
            return ("fe80::1", 8000, 0, socket.if_nametoindex("lo"))

    assert url_of(Linked()) == "http://[fe80::1%25lo]:8000"  # type: ignore[arg-type]
