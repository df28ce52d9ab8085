"""The one parser of http(s) URLs: what it returns is what is resolved, checked, dialled and sent."""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from string import punctuation
from urllib.parse import quote, urljoin

from opsin_server.media.media_kind import IMAGE, MediaKind

MAX_LENGTH = 8192

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
# No percent-escapes, no "@", nothing outside ASCII: every spelling that two parsers could read differently.
_AUTHORITY = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([a-zA-Z0-9._-]+))(?::([0-9]{0,5}))?")
_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # what PNG, JPEG, GIF and WEBP begin with
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


@dataclass(frozen=True)
class Url:
    """An absolute http(s) URL, normalised: host in lower case without a final dot, an IPv6 host without brackets."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """As in a Host header: brackets around IPv6, the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(text: str, kind: MediaKind = IMAGE) -> Url:
    """An image's or a video's. Raises BadRequest for anything that is not plainly an http(s) URL."""
    if not _is_http(text):
        hint = "; bare base64 needs data:image/png;base64, before it" if text.startswith(_BASE64) else ""
        some = kind.some.capitalize()
        raise kind.refused(f"{some} URL must be a data: URL or start with http:// or https://{hint}")
    return parse_http_url(text, f"{kind.noun} URL", kind)


def parse_http_url(text: str, what: str, kind: MediaKind = IMAGE) -> Url:
    """what: the URL's name in the sentence of the BadRequest that is raised for anything else."""
    parts = _URL.fullmatch(text) if _is_http(text) else None
    if parts is None:
        raise kind.refused(f"The {what} must start with http:// or https://")
    _check_characters(text, what, kind)
    scheme, authority, rest = parts[1].lower(), parts[2], parts[3]
    if not authority:
        raise kind.refused(f"The {what} names no host behind {scheme}://")
    if "@" in authority:
        raise kind.refused(f"The {what} must not carry a user name or password")
    place = _AUTHORITY.fullmatch(authority)
    if place is None:
        raise kind.refused(f"The {what}'s host is not valid (an international name must be in its xn-- form)")
    port = int(place[3] or _default_port(scheme))
    if not 0 < port < 65536:
        raise kind.refused(f"The {what}'s port is {port}; ports are 1 to 65535")
    host = _ipv6(place[1], what, kind) if place[1] else _name(place[2], what, kind)
    target = rest if rest.startswith("/") else "/" + rest
    return Url(scheme, host, port, quote(target, safe=punctuation))


def join_url(base: Url, location: bytes, kind: MediaKind = IMAGE) -> Url:
    """Where a redirect leads; held to the same rules as a URL that a caller wrote."""
    try:
        text = location.decode()
        _check_characters(text, f"{kind.noun} URL", kind)
        # Not through urljoin when it names a scheme: that reads "http:/x" as a path here, a browser as a host.
        return parse_url(text if _SCHEME.match(text) else urljoin(str(base), text), kind)
    except ValueError:  # not UTF-8, or brackets that urljoin cannot read
        raise kind.refused("The redirect's address is not valid") from None


def _is_http(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def _check_characters(text: str, what: str, kind: MediaKind) -> None:
    if len(text) > MAX_LENGTH:
        raise kind.refused(f"The {what} has {len(text):,} characters; the limit is {MAX_LENGTH:,}")
    # isprintable() is false for controls, for every space but " ", for zero-width characters and lone surrogates.
    if not text.isprintable() or " " in text or "\\" in text:
        raise kind.refused(f"The {what} holds a space, a control character or a backslash")


def _name(host: str, what: str, kind: MediaKind) -> str:
    name = host.lower().removesuffix(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, name.split("."))):
        raise kind.refused(f"The {what}'s host is not a valid name")
    return name


def _ipv6(host: str, what: str, kind: MediaKind) -> str:
    try:
        return str(IPv6Address(host))
    except AddressValueError:
        raise kind.refused(f"The {what}'s host is not a valid IPv6 address") from None


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
