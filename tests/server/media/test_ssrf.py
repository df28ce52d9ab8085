"""No spelling, redirect or DNS answer makes the server dial an address that is not public."""

import asyncio
import ipaddress
import re
from contextlib import suppress

import pytest

from opsin_server.errors import BadRequest
from opsin_server.media.load_images import load_images
from opsin_server.media_limits import MediaLimits

# Every name that the URLs below use; numeric spellings are left to the C library.
NAMES = {
    "localhost": ["127.0.0.1", "::1"],
    "localhost6": ["::1"],
    "ip6-localhost": ["::1"],
    "app.localhost": ["127.0.0.1"],
    "localhost.localdomain": ["127.0.0.1"],
    "localtest.me": ["127.0.0.1"],
    "127.0.0.1.nip.io": ["127.0.0.1"],
    "169.254.169.254.nip.io": ["169.254.169.254"],
    "metadata": ["169.254.169.254"],
    "metadata.google.internal": ["169.254.169.254"],
    "instance-data.ec2.internal": ["169.254.169.254"],
    "kubernetes.default.svc": ["10.96.0.1"],
    "redis": ["172.20.0.3"],
    "mixed.example": ["93.184.216.34", "10.0.0.1"],
    "mixed6.example": ["2606:2800:220:1:248:1893:25c8:1946", "fd00::1"],
    "mapped.example": ["::ffff:10.0.0.1"],
    "mapped-and-public.example": ["93.184.216.34", "::ffff:169.254.169.254"],
    "nat64.example": ["64:ff9b::a9fe:a9fe"],
    "sixtofour.example": ["2002:7f00:1::"],
    "teredo.example": ["2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "multicast.example": ["224.0.0.251"],
    "broadcast.example": ["255.255.255.255"],
    "scoped.example": ["fe80::1%eth0"],
    "scoped-global.example": ["2606:2800::1%eth0"],
    "nonsense.example": ["not an address"],
    "xn--localhost-q1a": ["127.0.0.1"],
}


def spelled(form: str, hosts: str) -> list[str]:
    return [form.format(host=host) for host in hosts.split()]


URLS = [
    # loopback, in every spelling that a C library reads
    *spelled(
        "http://{host}/",
        """
        127.0.0.1 127.0.0.2 127.1 127.0.1 127.255.255.254 127.0.0.1. 0 0.0 0.0.0.0 0.0.0.0. 0.1.2.3 2130706433
        017700000001 0x7f000001 0X7F000001 0x7f.1 0x7f.0.0.1 0x7f.0x0.0x0.0x1 0177.0.0.1 0177.1 0177.0.0.01
        00000177.0.0.1 127.0x0.0.1 127.0.0.0x1 127.0.1. 0x7F.0.1 0x0 00 0x00000000 4294967295 0xffffffff
        037777777777 255.255.255.255
        """,
    ),
    # private, shared, link-local, reserved
    *spelled(
        "http://{host}/latest/meta-data/",
        """
        169.254.169.254 169.254.169.254. 2852039166 0xa9fea9fe 0xA9FEA9FE 0xa9.0xfe.0xa9.0xfe 0251.0376.0251.0376
        025177524776 169.254.43518 169.16689662 0xa9.254.0251.254 169.254.170.2 169.254.0.1 100.100.100.200
        168.63.129.16 192.0.0.192 10.0.0.1 10.1 10.255.255.255 167772161 0x0a000001 012.0.0.1 172.16.0.1
        172.31.255.255 2886729729 192.168.0.1 192.168.1 192.168.257 3232235521 0xc0a80001 0300.0250.0.1
        100.64.0.1 100.127.255.255 192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1
        224.0.0.1 239.255.255.250 240.0.0.1
        """,
    ),
    # IPv6: loopback, unspecified, mapped, compatible, NAT64, 6to4, Teredo, local, multicast, documentation
    *spelled(
        "http://[{host}]/",
        """
        ::1 0:0:0:0:0:0:0:1 0000:0000:0000:0000:0000:0000:0000:0001 ::0001 :: 0:0:0:0:0:0:0:0 ::127.0.0.1
        ::ffff:127.0.0.1 ::ffff:7f00:1 ::FFFF:7F00:0001 0:0:0:0:0:ffff:127.0.0.1 ::ffff:a9fe:a9fe
        ::ffff:169.254.169.254 ::ffff:10.0.0.1 ::ffff:0:127.0.0.1 ::ffff:0.0.0.0 ::ffff:224.0.0.1 64:ff9b::7f00:1
        64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::808:808 64:ff9b:1::7f00:1 64:ff9b:1:1::a00:1 2002:7f00:1::
        2002:a9fe:a9fe:: 2002:808:808:: 2001:: 2001:0:7f00:1:: 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:10::1
        2001:20::1 2001:2::1 2001:db8::1 3fff::1 5f00::1 100::1 fc00::1 fd00:ec2::254 fd12:3456:789a::1 fe80::1
        febf::1 fec0::1 ff02::1 ff0e::1 4000::1 e000::1 1::1 fe80::1%25eth0 fe80::1%eth0 ::1%251 v1.7f000001
        ::ffff:127.0.0.1:80 127.0.0.1
        """,
    ),
    *(f"http://{name}/" for name in NAMES if name != "xn--localhost-q1a"),
    # names in disguise
    "http://LOCALHOST/",
    "http://LocalHost:8000/",
    "http://localhost./",
    "http://METADATA.google.internal/",
    "http://xn--localhost-q1a/",
    "http://loc\u0430lhost/",
    "http://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54/",
    "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
    "http://127\u30020\u30020\u30021/",
    "http://127\uff0e0\uff0e0\uff0e1/",
    "http://127\uff610\uff610\uff611/",
    "http://169\u3002254\u3002169\u3002254/",
    "http://127.0.0.1\u200b/",
    "http://\u200b127.0.0.1/",
    "http://local\u00adhost/",
    "http://%31%32%37.0.0.1/",
    "http://127.0.0%2e1/",
    "http://%6c%6f%63alhost/",
    "http://127.0.0.1%00.example.com/",
    "http://unknown.example/",
    "http://a..b/",
    "http://.localhost/",
    "http://localhost../",
    "http://-/",
    "http://*/",
    # a user name that looks like a host, a host that looks like a path
    "http://public.example@127.0.0.1/",
    "http://public.example:80@127.0.0.1/",
    "http://user:password@public.example/",
    "http://@127.0.0.1/",
    "http://:@public.example/",
    "http://public.example%40127.0.0.1/",
    "http://127.0.0.1@public.example/",
    "http://public.example\\@127.0.0.1/",
    "http://127.0.0.1\\@public.example/",
    "http://public.example\\.127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "http:/\\127.0.0.1/",
    "http://127.0.0.1#@public.example/",
    "http://127.0.0.1?@public.example/",
    "http://127.0.0.1;@public.example/",
    "http://127.0.0.1,public.example/",
    "http://public.example 127.0.0.1/",
    "http://127.0.0.1 public.example/",
    "http://[::1]public.example/",
    "http://[::1].public.example/",
    "http://public.example[::1]/",
    "http://[::1/",
    "http://::1]/",
    "http://::1/",
    "http://[]/",
    # controls and white space
    "http://127.0.0.1\t/",
    "http://127.0.\n0.1/",
    "ht\ntp://127.0.0.1/",
    " http://127.0.0.1/",
    "http://127.0.0.1/ ",
    "http://127.0.0.1/\r\nHost: public.example",
    "http://public.example/\r\nX-Injected: 1",
    "http://public.example/a b",
    "http://public.example/a\\b",
    "http://public.example/?a\\b",
    "http://public.example/\x00",
    "http://public.example/\x7f",
    "http://\u00a0127.0.0.1/",
    "http://127.0.0.1\u3000/",
    "http://public.example/\u2028",
    "http://public.example/\ud800",
    # ports
    "http://127.0.0.1:22/",
    "http://127.0.0.1:0080/",
    "http://127.0.0.1:/",
    "http://public.example:0/",
    "http://public.example:65536/",
    "http://public.example:-1/",
    "http://public.example:80:80/",
    "http://public.example:8o/",
    "http://public.example:\u0661/",
    "https://127.0.0.1/",
    "https://[::1]:8443/",
    "https://169.254.169.254/",
    # shapes and schemes
    "http:",
    "http:/",
    "http://",
    "http:///",
    "http:///127.0.0.1/",
    "http:127.0.0.1",
    "http:/127.0.0.1/",
    "http://?x",
    "http://#x",
    "https:localhost",
    "HTTP://127.0.0.1/",
    "hTTps://localhost/",
    "file:///etc/passwd",
    "file://127.0.0.1/etc/passwd",
    "FILE:///etc/passwd",
    "ftp://127.0.0.1/x.png",
    "gopher://127.0.0.1:6379/_INFO",
    "dict://127.0.0.1:11211/stats",
    "ldap://127.0.0.1/",
    "jar:http://127.0.0.1!/",
    "url:http://127.0.0.1/",
    "ws://127.0.0.1/",
    "unix:/var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "javascript:alert(1)",
    "//127.0.0.1/",
    "/etc/passwd",
    "../../etc/passwd",
    "C:\\secret.png",
    "picture.png",
    "",
    "http://" + "a" * 64 + "/",
    "http://" + "a." * 130 + "example/",
    "http://public.example/" + "a" * 9000,
]

# Where a rebinding name turns to when the URL itself leads nowhere.
INWARD = ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"]


def is_public(address: str) -> bool:
    """Judged without the code under test."""
    closed = ["64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "224.0.0.0/4", "ff00::/8", "fec0::/10"]
    parsed = ipaddress.ip_address(address)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return parsed.is_global and not any(parsed in ipaddress.ip_network(block) for block in closed)


@pytest.fixture
def image(kit) -> bytes:
    return kit.http(kit.encode(kit.picture(4, 4), "PNG"))


def refusal(internet, url: str) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        asyncio.run(load_images([url], MediaLimits(), ["messages[0]"], network=internet.network()))
    error = caught.value
    assert error.param == "messages[0]"
    assert all(map(is_public, internet.dialed))  # the promise; a host name here would raise
    shown = set(re.findall(r"\d+\.\d+\.\d+\.\d+|[0-9a-f]*::[0-9a-f:]+", error.message))
    assert all(address in url for address in shown)  # never an address that the caller did not write
    return error


def test_there_are_enough_urls() -> None:
    assert len(URLS) == len(set(URLS)) >= 120


@pytest.mark.parametrize("url", URLS)
def test_direct(kit, image, url: str) -> None:
    names = {name: [answer] for name, answer in NAMES.items()}
    internet = kit.FakeInternet({**names, "public.example": [[kit.PUBLIC]]}, lambda *_: image)
    error = refusal(internet, url)
    assert error.code == "image_url_not_allowed"
    assert internet.dialed == []


@pytest.mark.parametrize("url", URLS)
def test_redirected_from_a_public_host(kit, image, url: str) -> None:
    def answer(address: str, request: bytes) -> bytes:
        if b"GET /start " not in request:
            return image
        # Raw, as a hostile server would; a line break would only end its own header.
        return kit.redirect("@").replace(b"@", url.encode("utf-8", "surrogatepass"), 1)

    names = {name: [answer] for name, answer in NAMES.items()}
    internet = kit.FakeInternet({**names, "start.example": [[kit.PUBLIC]], "public.example": [[kit.PUBLIC]]}, answer)
    if _is_harmless_as_redirect(url):  # relative to the public host, or cut short by HTTP itself: may succeed
        with suppress(BadRequest):
            asyncio.run(load_images(["http://start.example/start"], MediaLimits(), network=internet.network()))
    else:
        refusal(internet, "http://start.example/start")
    assert set(internet.dialed) == {kit.PUBLIC}


@pytest.mark.parametrize("index", range(len(URLS)))
def test_rebinding(kit, image, index: int) -> None:
    """The name is public when first asked and private after; then public and private in one answer."""
    url = URLS[index]
    probe = kit.FakeInternet({name: [answer] for name, answer in NAMES.items()}, lambda *_: image)
    host = re.sub(r"^\w+://\[?|[\]/].*$", "", url, flags=re.DOTALL)
    try:
        found = asyncio.run(probe.resolve(host, 80))
    except UnicodeError:
        found = []
    inward = [address for address in found if _is_private(address)] or [INWARD[index % len(INWARD)]]

    again = kit.redirect("http://rebind.example/again")
    internet = kit.FakeInternet({"rebind.example": [[kit.PUBLIC], inward]}, lambda *_: again)
    assert refusal(internet, "http://rebind.example/").code == "image_url_not_allowed"
    assert internet.dialed == [kit.PUBLIC]  # the second lookup was judged anew
    assert internet.lookups == ["rebind.example"] * 2  # and none happened between judging and dialling

    for answers in ([kit.PUBLIC, *inward], [*inward, kit.PUBLIC]):
        mixed = kit.FakeInternet({"rebind.example": [answers, [kit.PUBLIC]]}, lambda *_: image)
        refusal(mixed, "http://rebind.example/")
        assert mixed.dialed == []


def _is_private(address: str) -> bool:
    try:
        return not is_public(address)
    except ValueError:
        return False


def _is_harmless_as_redirect(url: str) -> bool:
    # HTTP trims a header's white space and ends it at a line break; what is left may be relative, and so public.
    return "\n" in url or not re.match(r"\s*([a-zA-Z+]+:|//)", url)


@pytest.mark.parametrize(
    ("url", "dialed"),
    [
        ("http://public.example/", "93.184.216.34"),
        ("https://Public.Example./x?y#z", "93.184.216.34"),
        ("http://8.8.8.8/", "8.8.8.8"),
        ("http://[2606:4700::1111]:8080/", "2606:4700::1111"),
        ("http://[::ffff:8.8.8.8]/", "8.8.8.8"),
        ("http://public.example:/", "93.184.216.34"),
        ("http://public.example#@127.0.0.1:99999999/", "93.184.216.34"),  # a fragment, to every parser
        ("http://public.example/a@b/%5c/ü", "93.184.216.34"),
    ],
)
def test_public_addresses_are_dialed_as_resolved(kit, image, url: str, dialed: str) -> None:
    internet = kit.FakeInternet({"public.example": [[dialed], ["10.0.0.1"]]}, lambda *_: image)
    (pixels,) = asyncio.run(load_images([url], MediaLimits(), network=internet.network()))
    assert pixels.shape == (4, 4, 3)
    assert internet.dialed == [dialed]


def test_host_and_certificate_name_stay_the_urls(kit, image) -> None:
    requests = []

    def answer(address: str, request: bytes) -> bytes:
        requests.append(request)
        return image

    internet = kit.FakeInternet({"public.example": [[kit.PUBLIC]]}, answer)
    asyncio.run(load_images(["https://Public.example:8443/a?b=c#d"], MediaLimits(), network=internet.network()))
    assert internet.tls_names == ["public.example"]
    assert requests[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: public.example:8443\r\n")


def test_a_picture_without_its_data_url_is_told_what_is_missing(kit) -> None:
    error = refusal(kit.FakeInternet({}, lambda *_: b""), "iVBORw0KGgo" * 10**6)
    assert "must be a data: URL or start with http" in error.message
    assert "bare base64 needs data:image/png;base64, before it" in error.message


def test_an_unknown_and_a_private_name_read_the_same(kit, image) -> None:
    internet = kit.FakeInternet({"db.internal": [["10.0.0.1"]]}, lambda *_: image)
    known, unknown = (refusal(internet, f"http://{host}/") for host in ("db.internal", "dc.internal"))
    assert (known.message, known.code) == (unknown.message, unknown.code)


@pytest.mark.parametrize(
    ("allow", "url", "opened"),
    [
        ("files.internal", "http://files.internal/", True),
        ("FILES.internal.", "http://files.INTERNAL./", True),
        ("files.internal", "http://other.internal/", False),
        ("files.internal", "http://a.files.internal/", False),
        ("internal", "http://files.internal/", False),
        ("10.0.0.1", "http://files.internal/", True),
        ("10.0.0.0/8", "http://files.internal/", True),
        ("10.0.0.2", "http://files.internal/", False),
        ("192.168.0.0/16", "http://files.internal/", False),
        ("10.0.0.0/8", "http://[::ffff:10.0.0.1]/", True),
        ("::1", "http://[::1]/", True),
        ("[::1]", "http://[0:0::1]/", True),
        ("fd00::/8", "http://[::1]/", False),
        ("127.0.0.1", "http://2130706433/", True),
    ],
)
def test_allow_opens_exactly_what_it_names(kit, image, allow: str, url: str, opened: bool) -> None:
    private = ["10.0.0.1"]
    names = {name: [private] for name in ("files.internal", "other.internal", "a.files.internal")}
    internet = kit.FakeInternet(names, lambda *_: image)
    limits = MediaLimits(allow=(allow,))
    if opened:
        asyncio.run(load_images([url], limits, network=internet.network()))
        assert len(internet.dialed) == 1
    else:
        with pytest.raises(BadRequest):
            asyncio.run(load_images([url], limits, network=internet.network()))
        assert internet.dialed == []


def test_allow_covers_the_host_that_was_named_and_no_other_hop(kit) -> None:
    inward = kit.redirect("http://10.0.0.2/")
    internet = kit.FakeInternet({"files.internal": [["10.0.0.1"]]}, lambda *_: inward)
    with pytest.raises(BadRequest):
        asyncio.run(
            load_images(["http://files.internal/"], MediaLimits(allow=("files.internal",)), network=internet.network())
        )
    assert internet.dialed == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("allow", ("10.0.0.1/8",), "--media-allow"),  # host bits: which of the two was meant?
        ("allow", ("10.0.0.0/40",), "--media-allow"),
        ("allow", ("http://host/",), "--media-allow"),
        ("allow", ("host:80",), "--media-allow"),
        ("allow", ("*.internal",), "--media-allow"),
        ("allow", ("",), "--media-allow"),
        ("max_image_bytes", 0, "--max-image-bytes"),
        ("max_image_pixels", 90_000_000, "--max-image-pixels"),
        ("max_images", -1, "--max-images"),
        ("fetch_timeout", float("nan"), "--media-timeout"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused_by_name(field: str, value: object, flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        MediaLimits(**{field: value})
