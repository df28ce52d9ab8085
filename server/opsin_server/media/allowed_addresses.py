"""Which addresses the server may dial on a caller's behalf."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from opsin_client.public_addresses import is_public
from opsin_server.media_limits import parse_allow


def dialable(host: str, answer: str, allow: Iterable[str]) -> str | None:
    """The address to dial for one DNS answer of a URL's host, or None where it may not be dialled.

    An IPv4-mapped IPv6 address is judged and dialled as the IPv4 address that it is.
    """
    try:
        address = ip_address(answer)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address) if is_public(address) or _is_opened(host, address, allow) else None


def _is_opened(host: str, address: IPv4Address | IPv6Address, allow: Iterable[str]) -> bool:
    return any(host == entry if isinstance(entry, str) else address in entry for entry in map(parse_allow, allow))
