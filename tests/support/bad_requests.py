"""Bad pictures, addresses, JSON and fields, and the words that each must be refused with. Hosts are those of
`tests/e2e/test_bad_input.py`, whose server has these limits."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from typing import Any, NamedTuple

import openai
from PIL import Image

from support.media_host import MediaHost
from support.talk import MODEL_NAME, SAMPLES, assistant, data_url, system, user

CIRCLE = (SAMPLES / "red_circle.png").read_bytes()
CAT = (SAMPLES / "cat.png").read_bytes()
TIMEOUT, IMAGES, IMAGE_BYTES, IMAGE_PIXELS, BODY_BYTES = 2.0, 4, 300_000, 4_000_000, 4_000_000


class Case(NamedTuple):
    """Messages or a whole body (bytes: as they are), and what the refusal must be."""

    name: str
    body: Any
    words: tuple[str, ...]  # of the message
    code: str | None = None
    param: str | None = None
    error: type[openai.APIStatusError] = openai.BadRequestError


def asked(*pictures: Any) -> list[dict]:
    return [user(*pictures, "What is this?")]


def with_url(url: str) -> list[dict]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]


URL = "messages[0].content[0].image_url"


# ------------------------------------------------------------------------------------------------ pictures


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, rows: bytes) -> bytes:
    """A PNG that says one thing and may hold another."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def encoded(kind: str, size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind, **options)
    return out.getvalue()


def one_bit(width: int, height: int) -> bytes:
    """20 KB of file for 169 million pixels."""
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


def noise() -> bytes:
    return random.Random(1).randbytes(IMAGE_BYTES + 1)


TOO_LARGE, DAMAGED, TRUNCATED = ("--max-image-pixels",), ("damaged",), ("truncated",)


def pictures() -> list[Case]:
    rows = b"\0" + bytes(3 * 100)
    files = [
        ("truncated-png", CAT[: len(CAT) // 2], TRUNCATED, "invalid_image"),
        ("png-of-its-first-bytes", CAT[:20], TRUNCATED, "invalid_image"),
        ("truncated-jpeg", encoded("JPEG", (300, 300))[:600], TRUNCATED, "invalid_image"),
        ("truncated-webp", encoded("WEBP", (300, 300))[:60], TRUNCATED, "invalid_image"),
        ("truncated-gif", encoded("GIF", (300, 300))[:200], TRUNCATED, "invalid_image"),
        ("flipped-bits", CAT[:200] + bytes(b ^ 255 for b in CAT[200:260]) + CAT[260:], DAMAGED, "invalid_image"),
        ("empty", b"", ("empty", "PNG"), "invalid_image"),
        ("text", b"Dear Sir or Madam", ("PNG, JPEG, WEBP and GIF",), "invalid_image"),
        ("html", b"<html><body>", ("HTML", "PNG"), "invalid_image"),
        ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", ("SVG", "PNG"), "invalid_image"),
        ("bmp", encoded("BMP"), ("BMP", "PNG"), "invalid_image"),
        ("tiff", encoded("TIFF"), ("TIFF", "PNG"), "invalid_image"),
        ("pdf", b"%PDF-1.7\n", ("PDF", "PNG"), "invalid_image"),
        ("avif", b"\0\0\0\x20ftypavif" + bytes(40), ("AVIF", "PNG"), "invalid_image"),
        ("too-many-bytes", noise(), ("--max-image-bytes", "300,000", "300,001"), "image_too_large"),
        ("too-many-pixels", encoded("PNG", (2001, 2000)), (*TOO_LARGE, "4,002,000", "4,000,000"), "image_too_large"),
        ("bomb-of-one-colour", one_bit(13000, 13000), TOO_LARGE, "image_too_large"),
        ("bomb-by-header", png_of(65000, 65000, rows), TOO_LARGE, "image_too_large"),
        ("bomb-by-2**31", png_of(2**31 - 1, 2**31 - 1, rows), ("image",), None),
        ("bomb-gif", b"GIF89a" + struct.pack("<HH", 65535, 65535) + encoded("GIF")[10:], TOO_LARGE, "image_too_large"),
        ("less-than-it-says", png_of(2000, 1999, rows), DAMAGED, "invalid_image"),
        ("no-pixels", png_of(0, 10, rows), ("image",), "invalid_image"),
    ]
    return [Case(name, asked(data), words, code, URL) for name, data, words, code in files]


def more_pictures() -> list[Case]:
    url = data_url(CIRCLE)
    urls = [
        ("no-comma", "data:image/png;base64", ("comma",)),
        ("not-base64", "data:image/png;base64,!!!!", ("base64",)),
        ("cut-base64", url[:-1], ("base64",)),
        ("said-to-be-text", url.replace("image/png", "text/plain"), ("text/plain", "image/png")),
        ("said-to-be-nothing", url.replace("image/png", ""), ("image/png",)),
    ]
    return [Case(f"data-url-{name}", with_url(u), words, "invalid_image", URL) for name, u, words in urls]


# ------------------------------------------------------------------------------------------------ addresses


def private_addresses() -> list[Case]:
    hosts = (
        *(
            "127.0.0.2",
            "127.1.1.1",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("[::1]", "[::]", "[fe80::1]", "[fd00::1]", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]"),
        *("2130706434", "0x7f000002", "017700000002", "127.2"),
    )
    refused = ("--media-allow",)
    return [Case(f"private-{h}", with_url(f"http://{h}/x.png"), refused, "image_url_not_allowed", URL) for h in hosts]


def odd_addresses() -> list[Case]:
    urls = {
        "file:///etc/passwd": ("http",),
        "ftp://127.0.0.1/x.png": ("http",),
        "/etc/passwd": ("http",),
        "": ("http",),
        "http://": ("host",),
        "http:///x.png": ("host",),
        "http://user:secret@127.0.0.1/x.png": ("password",),
        "http://127.0.0.1:99999/x.png": ("port",),
        "http://127.0.0.1\\@10.0.0.1/x.png": ("backslash",),
        "http://127.0.0.1/a b.png": ("space",),
        "http://127.0.0.1%2f@10.0.0.1/": (),
        "http://ex\u00e4mple.com/x.png": ("xn--",),
        "http://127.0.0.1/" + "x" * 9000: ("8,192",),
    }
    return [Case(f"url-{u[:40]!r}", with_url(u), words, "image_url_not_allowed", URL) for u, words in urls.items()]


def hosts_that_misbehave(media: MediaHost) -> list[Case]:
    slow, inward = ("--media-timeout", "127.0.0.1"), ("--media-allow",)
    paths = {
        "/silence": (slow, "image_fetch_failed"),
        "/drip": (slow, "image_fetch_failed"),
        "/flood": (("--max-image-bytes",), "image_too_large"),
        "/half": (("127.0.0.1",), "image_fetch_failed"),
        "/nothing-here": (("404",), "image_fetch_failed"),
        "/page": (("text/html",), "invalid_image"),
        "/text.png": (("PNG",), "invalid_image"),
        "/large": (("--max-image-bytes",), "image_too_large"),
        "/zipped": (("compressed",), "image_fetch_failed"),
        "/inward": (inward, "image_url_not_allowed"),
        "/metadata": (inward, "image_url_not_allowed"),
        "/ten": (inward, "image_url_not_allowed"),
        "/six": (inward, "image_url_not_allowed"),
        "/number": (inward, "image_url_not_allowed"),
        "/file": (("http",), "image_url_not_allowed"),
        "/data": (("http",), "image_url_not_allowed"),
        "/round": (("redirects", "5"), "image_fetch_failed"),
    }
    cases = [Case(f"fetch{p}", with_url(media.url(p)), words, code, URL) for p, (words, code) in paths.items()]
    closed = with_url("http://127.0.0.1:9/x.png")
    return [*cases, Case("nobody-listens", closed, ("127.0.0.1",), "image_fetch_failed", URL)]


# ------------------------------------------------------------------------------------------------ bodies and fields


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL_NAME, "messages": [user("Hello")], "max_tokens": 4, **fields}


def as_json(**fields: Any) -> bytes:
    return json.dumps(body(**fields)).encode()


def bodies() -> list[Case]:
    hello = as_json()
    bad, large = "invalid_json", "request_too_large"
    deep = b'{"model": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    cases = [
        ("empty", b"", ("JSON",), bad),
        ("cut", hello[:-5], ("JSON",), bad),
        ("no-json", b"model=opsin-mini", ("JSON",), bad),
        ("single-quotes", hello.replace(b'"', b"'"), ("JSON",), bad),
        ("not-utf-8", hello.replace(b"Hello", b"\xff\xfe"), (), None),
        ("lone-surrogate", hello.replace(b"Hello", b"\\ud800"), (), None),
        ("deep", deep, (), None),
        ("deep-objects", b'{"a": ' * 50_000 + b"1" + b"}" * 50_000, (), None),
        ("many-values", b'{"messages": [' + b"[]," * 200_000 + b"[]]}", ("100000",), None),
        ("nan", hello[:-1] + b', "temperature": NaN}', (), None),
        ("infinity", hello[:-1] + b', "temperature": Infinity}', (), None),
        ("1e999", hello[:-1] + b', "temperature": 1e999}', ("temperature",), None),
        ("huge-integer", hello[:-1] + b', "seed": ' + b"9" * 5000 + b"}", (), None),
        ("a-list", b"[" + hello + b"]", ("object",), "invalid_type"),
        ("a-string", b'"Hello"', ("object",), "invalid_type"),
        ("null", b"null", ("object",), "invalid_type"),
    ]
    out = [Case(f"body-{name}", data, words, code) for name, data, words, code in cases]
    too_large = b" " * (BODY_BYTES + 1)
    return [*out, Case("body-too-large", too_large, ("--max-body-bytes",), large, error=openai.APIStatusError)]


def fields() -> list[Case]:
    bad = {
        "temperature": (-0.1, 2.1, "1", True, [1]),
        "top_p": (0, 1.1, -1),
        "top_k": (-2, 1.5, 2**31),
        "min_p": (-0.1, 1.1),
        "max_tokens": (0, -1, 2**31, 1.5, "4"),
        "max_completion_tokens": (0, -1),
        "seed": (2**63, -(2**63) - 1, 1.5),
        "stop": (["a"] * 17, 5, [5], "x" * 2000),
        "top_logprobs": (21, -1, 5),  # (the last: without logprobs)
        "logprobs": ("yes", 1),
        "stream": ("yes", 1),
        "frequency_penalty": (2.1, "0", True),
        "presence_penalty": (-2.5, []),
        "repetition_penalty": (0, -1, 101),
        "logit_bias": ({"x": 1}, {"1": 101}, {"-1": 1}, {"999999": 1}, {"5": None}, [1]),
        "stream_options": ({"include_usage": 1}, {"other": 1}),
        "continue_final_message": (True, "yes"),
        "add_generation_prompt": (False, 1),
        "n": (0, 17, "2", 1.5),
        "tools": ("x", [5], [{"type": "function"}], [{"type": "web_search"}]),
        "tool_choice": ("always", 5, "required"),
        "response_format": ("json", {"type": "yaml"}, {"type": "json_schema"}),
        "guided_json": (5, {"type": 7}, "{"),
        "guided_regex": (5, "(a", "a" * 9000),
        "guided_choice": ([], [5], [""]),
        "min_tokens": (-1, "1"),
        "stop_token_ids": ([-1], "x"),
        "priority": (1.5, "high"),
        "chat_template_kwargs": ("x", {"messages": []}),
        "messages": ([], "Hello", None, [5], {"role": "user"}),
        "model": ("", None, 5),
    }
    cases = [
        Case(f"{name}={str(value)[:30]}", as_json(**{name: value}), (name,))
        for name, values in bad.items()
        for value in values
    ]
    unsupported = {
        "functions": [{"name": "f"}],
        "verbosity": "low",
        "store": True,
        "reasoning_effort": "high",
        "service_tier": "flex",
    }
    cases += [
        Case(f"{name}-is-not-supported", as_json(**{name: value}), (name,), "unsupported_parameter", name)
        for name, value in unsupported.items()
    ]
    unknown = ("Unrecognized", "temprature")
    cases.append(Case("unknown-field", as_json(temprature=0), unknown, "unknown_parameter", "temprature"))
    missing = json.dumps({"messages": [user("Hello")]}).encode()
    cases.append(Case("no-model", missing, ("model",), "missing_required_parameter", "model"))
    other = ("gpt-4o", MODEL_NAME)
    return [
        *cases,
        Case("model-is-unknown", as_json(model="gpt-4o"), other, "model_not_found", "model", openai.NotFoundError),
    ]


def messages() -> list[Case]:
    def one(content: Any, role: str = "user") -> list[dict]:
        return [{"role": role, "content": content}]

    many = ("--max-images", str(IMAGES), str(IMAGES + 1))
    whole = Image.new("RGB", (1800, 1600), "red")
    cases = [
        ("unknown-role", one("Hello", "robot"), ("role", "assistant"), None),
        ("tool-role", one("Hello", "tool"), ("tool_call_id",), None),
        ("no-content", [{"role": "user"}], ("content",), None),
        ("null-content", one(None), ("content",), None),
        ("empty-parts", one([]), ("content",), None),
        ("unknown-part", one([{"type": "input_video", "input_video": {"url": "x"}}]), ("image_url",), None),
        ("video", one([{"type": "video_url", "video_url": {"url": "x"}}]), ("no videos",), "unsupported_video"),
        ("audio-part", one([{"type": "input_audio", "input_audio": {}}]), ("image_url",), None),
        ("part-without-its-text", one([{"type": "text"}]), ("text",), None),
        ("part-with-both", one([{"type": "text", "text": "a", "image": "b"}]), ("image",), None),
        ("unknown-field-of-a-part", one([{"type": "text", "text": "a", "x": 1}]), ("x",), "unknown_parameter"),
        ("picture-from-the-assistant", [{**asked(CIRCLE)[0], "role": "assistant"}, user("a")], ("user",), None),
        ("picture-from-the-system", [{**asked(CIRCLE)[0], "role": "system"}, user("a")], ("user",), None),
        ("the-assistant-has-the-last-word", [user("a"), assistant("b")], ("assistant",), "unsupported_parameter"),
        ("too-many-images", asked(*[CIRCLE] * (IMAGES + 1)), many, "too_many_images"),
        ("too-many-pixels-together", asked(whole, whole, whole), ("--max-request-pixels",), "image_too_large"),
        ("too-long", [user("What is this? " * 1500)], ("1024", "Shorten"), "context_length_exceeded"),
        ("only-a-system-message-too-long", [system("a b " * 3000), user("a")], ("1024",), "context_length_exceeded"),
    ]
    cases.append(
        (
            "too-long-with-pictures",
            asked(CIRCLE, CAT, "What is this? " * 1500),
            ("1024", " of them for 2 images, the largest ", "there is room for none beside this text"),
            "context_length_exceeded",
        )
    )
    return [Case(name, what, words, code) for name, what, words, code in cases]


STATIC = [
    *pictures(),
    *more_pictures(),
    *private_addresses(),
    *odd_addresses(),
    *bodies(),
    *fields(),
    *messages(),
]
