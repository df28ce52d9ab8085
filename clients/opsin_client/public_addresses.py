"""Which addresses belong to the public Internet, so that what a stranger names may be asked for there."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# `is_global` alone is not enough: it says yes to multicast, to the 6to4 relay and, depending on the Python patch
# release, to more. What is listed here is refused whatever the standard library of the day says.
_CLOSED_V4 = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier NAT; Alibaba's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host agent: a public address that is inside every Azure network
        "169.254.0.0/16",  # link-local; the metadata service of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relay
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)

# IPv6 is the other way round: only what is handed out to the public Internet (2000::/3), less these. That leaves out
# ::1, fc00::/7, fe80::/10, fec0::/10, ff00::/8 and NAT64 (64:ff9b::/96, 64:ff9b:1::/48) without naming them.
_OPEN_V6 = ip_network("2000::/3")
_CLOSED_V6 = tuple(
    ip_network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo 2001::/32, ORCHID, benchmarking
        "2001:db8::/32",
        "2002::/16",  # 6to4 carries an IPv4 address that nobody has checked
        "3fff::/20",
    )
)


def read_address(text: str) -> IPv4Address | IPv6Address | None:
    """None for what is no address. An IPv4-mapped IPv6 address is judged and dialled as the IPv4 address that it is."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in block for block in _CLOSED_V4)
    return (
        address.is_global
        and address.scope_id is None
        and address in _OPEN_V6
        and not any(address in block for block in _CLOSED_V6)
    )
