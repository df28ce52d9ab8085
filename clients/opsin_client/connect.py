"""A connection to a server: through the environment's proxy, unless the server is on this machine; and what was typed
for one, or read from a file, as it is used."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    import openai

TIMEOUT = httpx2.Timeout(600, connect=5)  # the SDK's own
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class ProxyError(Exception):
    """The environment names a proxy that cannot be used. The message names the variable, never its value, which may
    hold a password."""


class BadKeyError(Exception):
    """An API key that no header can hold. The message does not show it."""


def full_url(url: str) -> str:
    """With a scheme; and a variable that was read from a file ends with a line end."""
    url = url.strip()
    return url if "://" in url else f"http://{url}"


def checked_key(api_key: str) -> str:
    """Raises BadKeyError. None given: a word, which servers without keys do not look at."""
    api_key = api_key.strip() or "none"
    if not all("!" <= character <= "~" for character in api_key):
        raise BadKeyError("the API key (--api-key, OPENAI_API_KEY) holds a blank or a character outside of ASCII")
    return api_key


def connect(url: str, api_key: str) -> openai.OpenAI:
    """Raises httpx2.InvalidURL, and ProxyError."""
    import openai  # most of a second, which only those wait for who chat

    return openai.OpenAI(base_url=url, api_key=api_key, max_retries=0, http_client=http_client(url))


def http_client(url: str) -> httpx2.Client:
    """For requests to this URL. Raises httpx2.InvalidURL, and ProxyError."""
    host = httpx2.URL(url).host
    options: dict[str, Any] = {"timeout": TIMEOUT, "follow_redirects": True}
    if is_this_machine(host):
        # (a transport of its own asks no proxy; certificates are those of the environment as ever)
        return httpx2.Client(transport=httpx2.HTTPTransport(), **options)
    try:
        return httpx2.Client(**options)
    except ImportError:
        raise ProxyError(
            f"{_set('socks')} names a SOCKS proxy, which takes another package: pip install socksio (or unset it)"
        ) from None
    except (ValueError, httpx2.InvalidURL):
        raise ProxyError(f"{_set()} names no proxy: write http://HOST:PORT") from None


def is_this_machine(host: str) -> bool:
    """Loopback as an address in any notation or as `localhost`, and the address that stands for all of this machine's.
    Other names are not looked up: with a proxy that is the proxy's work."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return _short_loopback(name)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback or ip.is_unspecified


def _short_loopback(host: str) -> bool:
    """127.1, 2130706433, 0x7f000001: what the system's resolver takes for an address."""
    try:
        return socket.inet_aton(host)[0] == 127
    except OSError:
        return False


def _set(scheme: str = "") -> str:
    """The variables that name a proxy, for a sentence."""
    found = [n for n in os.environ if n.lower() in PROXIES and os.environ[n].strip().lower().startswith(scheme)]
    return " or ".join(sorted(found)) or "a setting of this system"
