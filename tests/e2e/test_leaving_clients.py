"""Clients that leave: what they held is given back, and the others are not disturbed."""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress

import openai
import pytest

from support.served import Served, serving, wait_for
from support.served_checks import works
from support.slow_steps import slow_steps
from support.streams import LONG, Reader, endless

GENEROUS = 90.0  # seconds for what takes one on a machine that does nothing else


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Its answers would go on for seconds."""
    with serving(env=slow_steps(tmp_path_factory.mktemp("slow"))) as server:
        yield server


def steps(server: Served) -> float:
    return server.metrics()['opsin_steps_total{engine="0"}']


def raw_post(server: Served, body: dict, cut: int | None = None) -> socket.socket:
    data = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    raw = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    raw.sendall(head.encode() + data[:cut])
    return raw


def reset(raw: socket.socket) -> None:
    """Ends a connection as a machine does that loses its client: RST, not FIN."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def a_client_times_out(server: Served) -> None:
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=0.05).chat.completions.create(**endless(extra_body={"ignore_eos": True}))


def a_stream_times_out_between_tokens(server: Served) -> None:
    """(It does not: the tokens come fast enough. So the whole stream is given up after a while.)"""
    stream = server.client().chat.completions.create(**endless(stream=True, extra_body={"ignore_eos": True}))
    for _ in zip(range(5), stream, strict=False):
        pass
    stream.close()


def a_stream_is_left_after_its_first_chunk(server: Served) -> None:
    with server.client().chat.completions.create(**endless(stream=True, extra_body={"ignore_eos": True})) as stream:
        next(iter(stream))


def a_non_streaming_client_hangs_up(server: Served) -> None:
    raw = raw_post(server, endless(ignore_eos=True))
    wait_for(server.running)
    raw.close()


def a_non_streaming_client_vanishes(server: Served) -> None:
    raw = raw_post(server, endless(ignore_eos=True))
    wait_for(server.running)
    reset(raw)


def a_streaming_client_vanishes(server: Served) -> None:
    raw = raw_post(server, endless(stream=True, ignore_eos=True))
    assert raw.recv(100).startswith(b"HTTP/1.1 200")
    reset(raw)


def a_client_leaves_in_the_middle_of_its_body(server: Served) -> None:
    reset(raw_post(server, endless(), cut=200))


def a_client_leaves_as_soon_as_it_has_asked(server: Served) -> None:
    raw_post(server, endless(ignore_eos=True)).close()


LEAVING = [
    a_client_times_out,
    a_stream_times_out_between_tokens,
    a_stream_is_left_after_its_first_chunk,
    a_non_streaming_client_hangs_up,
    a_non_streaming_client_vanishes,
    a_streaming_client_vanishes,
    a_client_leaves_in_the_middle_of_its_body,
    a_client_leaves_as_soon_as_it_has_asked,
]


@pytest.mark.parametrize("leave", LEAVING, ids=lambda leave: leave.__name__)
def test_what_a_leaving_client_held_is_given_back(served, leave):
    """Long before its answer would have ended: neither blocks nor requests are held for it."""
    served.wait_idle()
    before = steps(served)
    leave(served)
    seconds = served.wait_idle(GENEROUS)
    wait_for(lambda: stands_still(served), GENEROUS, "the engine goes on with nobody to read it")
    assert steps(served) - before < LONG * 2 / 3, f"given back only after {seconds:.1f} s and nearly the whole answer"
    works(served)


def stands_still(server: Served) -> bool:
    """(An engine may have a step to tell of that it had begun before it heard that nobody waits for it.)"""
    now = steps(server)
    time.sleep(0.3)
    return steps(server) == now


def test_one_that_leaves_does_not_disturb_the_others(served):
    alone = served.client().chat.completions.create(**endless(1, max_tokens=60, extra_body={"ignore_eos": True}))
    leaving = [Reader(served.client(timeout=0.1), n, stream=False) for n in range(2, 5)]
    stays = served.client().chat.completions.create(**endless(1, max_tokens=60, extra_body={"ignore_eos": True}))
    assert stays.choices[0].message.content == alone.choices[0].message.content
    assert all(isinstance(reader.end().error, openai.APITimeoutError) for reader in leaving)
    served.wait_idle(GENEROUS)


@pytest.mark.nightly
def test_five_hundred_aborts_at_random_stages(served, record_property):
    """Before, in and after the body, while it waits, in prefill, in decode, streaming and not, FIN and RST."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    rng = random.Random(seed)
    served.wait_idle()
    idle = []
    for i in range(500):
        body = endless(i, ignore_eos=True, stream=rng.random() < 0.5)
        cut = rng.randrange(len(json.dumps(body))) if rng.random() < 0.1 else None
        raw = raw_post(served, body, cut)
        time.sleep(rng.choice((0, 0, rng.random() * 0.02, rng.random() * 0.2)))
        if rng.random() < 0.2:
            raw.setblocking(False)
            with suppress(BlockingIOError):
                raw.recv(rng.choice((1, 50, 5000)))
        (reset if rng.random() < 0.5 else socket.socket.close)(raw)
        if i % 50 == 49:
            idle.append(served.wait_idle(GENEROUS))
            works(served)
    record_property("result", f"idle again after at most {max(idle):.2f} s, looked at every 50 aborts; seed {seed}")
