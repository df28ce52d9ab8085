"""Bad pictures, addresses, JSON and fields: each its 4xx in words that help, and nothing is lost by it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from support.bad_requests import (
    BODY_BYTES,
    CIRCLE,
    IMAGE_BYTES,
    IMAGE_PIXELS,
    IMAGES,
    STATIC,
    TIMEOUT,
    Case,
    asked,
    hosts_that_misbehave,
    pictures,
    with_url,
)
from support.media_host import MediaHost, drip, flood, hang_up, ok, redirect, silence
from support.served import Served, open_files, resident, threads, wait_for
from support.talk import MODEL_NAME, data_url, png, sample, user

MIB = 2**20


@pytest.fixture(scope="module")
def media() -> Iterator[MediaHost]:
    host = MediaHost({})
    host.answers |= {
        "/circle.png": ok(CIRCLE),
        "/there": redirect("/circle.png"),
        "/silence": silence,
        "/drip": drip,
        "/flood": flood,
        "/half": hang_up,
        "/page": ok(b"<html>not found</html>", "text/html"),
        "/text.png": ok(b"no picture", "image/png"),
        "/large": ok(b"x" * (IMAGE_BYTES + 1)),
        "/zipped": ok(zlib.compress(CIRCLE), more="Content-Encoding: deflate\r\n"),
        "/inward": redirect(host.url("/circle.png", "127.0.0.2")),
        "/metadata": redirect("http://169.254.169.254/latest/meta-data/"),
        "/ten": redirect("http://10.0.0.1/secret"),
        "/six": redirect("http://[::1]:80/"),
        "/file": redirect("file:///etc/passwd"),
        "/data": redirect(data_url(CIRCLE)),
        "/round": redirect("/round"),
        "/number": redirect(f"http://2130706434:{host.port}/circle.png"),  # 127.0.0.2
    }
    yield host
    host.close()


@pytest.fixture(scope="module")
def server(media) -> Iterator[Served]:
    """Small limits, and one private address open."""
    settings = {
        "--media-allow": "127.0.0.1",
        "--media-timeout": TIMEOUT,
        "--max-images": IMAGES,
        "--max-image-bytes": IMAGE_BYTES,
        "--max-image-pixels": IMAGE_PIXELS,
        "--max-request-pixels": 2 * IMAGE_PIXELS,
        "--max-body-bytes": BODY_BYTES,
    }
    server = Served(*(str(word) for pair in settings.items() for word in pair))
    try:
        yield server
        server.close()
    finally:
        server.discard()


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return server.client()


def send(client: openai.OpenAI, case: Case, **options: Any) -> Any:
    if isinstance(case.body, bytes):
        headers = {"headers": {"content-type": "application/json"}}
        return client.post("/chat/completions", cast_to=object, content=case.body, options=headers)
    return client.chat.completions.create(model=MODEL_NAME, messages=case.body, max_tokens=4, **options)


def check(client: openai.OpenAI, case: Case, **options: Any) -> None:
    with pytest.raises(case.error) as refused:
        send(client, case, **options)
    error = refused.value
    message = error.message
    assert 400 <= error.status_code < 500, message
    for word in case.words:
        assert word in message, f"{word!r} is not in {message!r}"
    assert case.code in (None, error.code), error.code
    assert case.param in (None, error.param), error.param
    assert error.type == "invalid_request_error"
    assert error.request_id
    assert len(message) < 1000
    for inside in ("Traceback", "0x", str(Path(__file__).parents[2]), "site-packages", "PIL.", "secret"):
        assert inside not in message, message


@pytest.mark.parametrize("case", STATIC, ids=lambda case: case.name)
def test_is_refused_with_a_message_that_helps(client, case):
    check(client, case)


@pytest.mark.parametrize("number", range(18))
def test_a_host_that_misbehaves_is_refused_in_time(client, media, number):
    case = hosts_that_misbehave(media)[number]
    start = time.monotonic()
    check(client, case)
    assert time.monotonic() - start < TIMEOUT + 30


def test_no_redirect_was_followed_inward(client, media):
    before = media.asked.count("/circle.png")
    for path in ("/inward", "/number"):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=MODEL_NAME, messages=with_url(media.url(path)))
    assert media.asked.count("/circle.png") == before


def test_what_is_allowed_is_fetched(client, media):
    for path in ("/circle.png", "/there"):
        messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": media.url(path)}}]}]
        messages[0]["content"].append({"type": "text", "text": "What is in the picture?"})
        answer = client.chat.completions.create(model=MODEL_NAME, messages=messages, temperature=0)
        assert answer.choices[0].message.content == "A red circle."


def test_a_wrong_label_does_not_matter_where_the_picture_is_good(client):
    """Clients often say image/jpeg of everything; what counts is what the bytes are."""
    for mime in ("image/jpeg", "image/webp", "image/x-unknown"):
        message = user("What is in the picture?")
        url = {"type": "image_url", "image_url": {"url": data_url(CIRCLE, mime)}}
        message["content"] = [url, {"type": "text", "text": "What is in the picture?"}]
        answer = client.chat.completions.create(model=MODEL_NAME, messages=[message], temperature=0)
        assert answer.choices[0].message.content == "A red circle."


@pytest.mark.parametrize("name", ["truncated-png", "too-long", "unknown-part"])
def test_a_stream_is_refused_before_it_begins(client, name):
    (case,) = [case for case in STATIC if case.name == name]
    check(client, case, stream=True)


def test_a_client_that_leaves_does_not_wait_for_a_hanging_host(server, media):
    impatient = server.client(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(model=MODEL_NAME, messages=with_url(media.url("/silence")))
    server.wait_idle()
    wait_for(lambda: media.open_connections == 0, 60, "the connection to the hanging host was not closed")


def test_wrong_addresses_and_methods(server, client):
    for path, status, code in (("/v1/moderations", 404, "unknown_url"), ("/v1/chat", 404, "unknown_url")):
        with pytest.raises(openai.NotFoundError) as refused:
            client.post(path.removeprefix("/v1"), cast_to=object, body={})
        assert (refused.value.status_code, refused.value.code) == (status, code)
    answer = server.get("/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


def test_texts_far_too_long_hold_nobody_up(server, client):
    """What cannot fit is not tokenized first: that takes seconds a megabyte, in the few threads that all share."""
    giants = [unit * (BODY_BYTES * 9 // 10 // len(unit)) for unit in (" ", "What is this? ", "<|im_end|>", "1")]
    cases = [Case(f"{giant[:9]}...", [user(giant)], ("1024",), "context_length_exceeded") for giant in giants]
    with ThreadPoolExecutor(len(cases)) as pool:
        start = time.monotonic()
        refused = [pool.submit(check, client, case) for case in cases]
        time.sleep(1)
        answer = client.chat.completions.create(model=MODEL_NAME, messages=[user("Hello")], max_tokens=4)
        waited = time.monotonic() - start
        for one in refused:
            one.result()
    assert answer.choices[0].message.content
    assert waited < 5, f"a small request waited for {waited:.1f} s"
    assert time.monotonic() - start < 10


# ------------------------------------------------------------------------------------------------ the census


POOLS = 24  # threads that are made when they are first needed, and then stay: names, pictures, prompts


def census(server: Served) -> dict[str, int]:
    api, engine = server.pid, server.engine
    return {
        "files of the API process": len(open_files(api)),
        "files of the engine": len(open_files(engine)),
        "threads of the API process": threads(api),
        "threads of the engine": threads(engine),
    }


def storm(server: Served, cases: list[Case]) -> list[str]:
    """All of them from eight clients at once. Returns those that were not refused with a 4xx."""

    def one(case: Case) -> str | None:
        try:
            send(client, case)
        except openai.APIStatusError as error:
            return None if error.status_code < 500 else f"{case.name}: {error.status_code}"
        return f"{case.name}: accepted"

    with server.client() as client, ThreadPoolExecutor(8) as pool:
        return [line for line in pool.map(one, cases) if line]


def test_after_all_of_it_nothing_is_held(server, media):
    """Files, threads, blocks, requests and memory before and after a storm of bad input; a first one fills the pools of
    threads, which are made when they are needed and then stay."""
    cases = [*STATIC, *hosts_that_misbehave(media)]
    assert storm(server, cases) == []
    server.wait_idle()
    wait_for(lambda: media.open_connections == 0, 60)
    before, memory = census(server), {pid: resident(pid) for pid in (server.pid, server.engine)}
    most = {what: n + (POOLS if what == "threads of the API process" else 2) for what, n in before.items()}
    engine = server.engine
    for _ in range(3):
        assert storm(server, cases) == []
    server.wait_idle()
    wait_for(lambda: media.open_connections == 0, 60)
    wait_for(lambda: all(n <= most[what] for what, n in census(server).items()), 60, f"not back to {most}")
    assert server.engine == engine, "the engine died"
    for pid, size in memory.items():
        growth = resident(pid) - size
        assert growth < 128 * MIB, f"{growth / MIB:.0f} MiB more after {3 * len(cases)} bad requests"
    assert server.metrics().get('opsin_requests_total{route="/v1/chat/completions",status="500"}', 0) == 0
    assert "Traceback" not in server.stderr, server.stderr
    answer = server.client().chat.completions.create(
        model=MODEL_NAME, messages=asked(png(sample("cat.png"))), temperature=0
    )
    assert answer.choices[0].message.content == "A cat."


@pytest.mark.nightly
def test_a_long_storm_ends_with_the_memory_of_its_middle(server, record_property):
    """What malloc keeps for threads levels off; a leak does not."""
    sizes = []
    for _ in range(60):
        assert storm(server, STATIC) == []
        sizes.append(resident(server.pid))
    kept = [size // MIB for size in (sizes[0], max(sizes[20:40]), max(sizes[40:]))]
    record_property(
        "result", f"60 storms of bad requests: {kept[0]} MiB after the first, then at most {kept[1]}, {kept[2]}"
    )
    assert max(sizes[40:]) - max(sizes[20:40]) < 48 * MIB


def test_bombs_cost_little_memory(server):
    """The largest picture that is let through to the decoder takes 12 MB; the others nothing."""
    peak = _peak(lambda: storm(server, [case for case in pictures() if "bomb" in case.name] * 3), server.pid)
    assert peak < 128 * MIB, f"{peak / MIB:.0f} MiB"


def _peak(work: Callable[[], Any], pid: int) -> int:
    """How far a process's memory rose while the work was done, looked at every few milliseconds."""
    start = highest = resident(pid)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        while not done.done():
            highest = max(highest, resident(pid))
            time.sleep(0.005)
        assert done.result() == []
    return highest - start
