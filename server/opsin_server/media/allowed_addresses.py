"""Which addresses the server may dial on a caller's behalf."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from opsin_client.public_addresses import is_public, read_address
from opsin_server.media_limits import parse_allow


def dialable(host: str, answer: str, allow: Iterable[str]) -> str | None:
    """The address to dial for one DNS answer of a URL's host, or None where it may not be dialled."""
    address = read_address(answer)
    if address is None:
        return None
    return str(address) if is_public(address) or _is_opened(host, address, allow) else None


def _is_opened(host: str, address: IPv4Address | IPv6Address, allow: Iterable[str]) -> bool:
    return any(host == entry if isinstance(entry, str) else address in entry for entry in map(parse_allow, allow))
