"""How things end: clients that leave, servers that are told to stop, engines and servers that are killed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest

from support.served import Process, Served, alive, wait_for
from support.streams import LONG, RawReader, Reader, all_under_way, endless
from support.talk import MINI, MODEL_NAME, sample, user

GENEROUS = 20.0  # seconds for what takes one on a machine that does nothing else
KEYS = ("first-key", "second-key")


def steps(server: Served) -> float:
    return server.metrics()["opsin_steps_total"]


def works(server: Served, **options) -> None:
    answer = server.client(**options).chat.completions.create(
        model=MODEL_NAME, messages=[user(sample("red_circle.png"), "What is in the picture?")], temperature=0
    )
    assert answer.choices[0].message.content == "A red circle."


def sentence(process: Process) -> str:
    """What a server that does not start says: one line, and not how it came to it."""
    assert process.wait() == 1, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("opsin: ")
    assert process.room.left() == []
    return lines[0]


# --------------------------------------------------------------------------------------------- clients that leave


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
        server.client(timeout=0.2).chat.completions.create(**endless(extra_body={"ignore_eos": True}))


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
    assert steps(served) - before < LONG * 2 / 3, f"given back only after {seconds:.1f} s and nearly the whole answer"
    now = steps(served)
    time.sleep(0.3)
    assert steps(served) == now, "the engine goes on with nobody to read it"
    works(served)


def test_one_that_leaves_does_not_disturb_the_others(served):
    alone = served.client().chat.completions.create(**endless(1, max_tokens=60, extra_body={"ignore_eos": True}))
    leaving = [Reader(served.client(timeout=0.5), n, stream=False) for n in range(2, 5)]
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


# --------------------------------------------------------------------------------------- told to stop


def test_sigterm_lets_six_streams_finish():
    """Readiness fails, new work gets 503, nothing is cut, the exit code is 0 and no process or file is left."""
    with Served("--api-key", KEYS[0], "--api-key", KEYS[1], "--drain-timeout", "300") as server:
        _keys_guard_everything_but_health(server)
        client = server.client(api_key=KEYS[1])
        sdk = [Reader(client, n) for n in range(3)]
        raw = [RawReader(server.url, n, {"Authorization": f"Bearer {KEYS[0]}"}) for n in range(3, 6)]
        all_under_way([*sdk, *raw])
        server.signal(signal.SIGTERM)
        wait_for(lambda: server.get("/health/ready").status_code == 503)
        assert server.get("/health/live").status_code == 200
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model=MODEL_NAME, messages=[user("Hello")])
        assert (refused.value.status_code, refused.value.code) == (503, "draining")
        assert float(refused.value.response.headers["retry-after"]) >= 1
        assert all(reader.is_alive() for reader in (*sdk, *raw)), "the streams were over too early to tell"
        for reader in sdk:
            assert (reader.end().error, reader.finish) == (None, "length")
        for reader in raw:
            assert (reader.end().error, reader.clean) == (None, True)
            assert reader.text.endswith("data: [DONE]\n\n")
            assert '"finish_reason":"length"' in reader.text
        assert server.wait() == 0
        assert "Traceback" not in server.stderr, server.stderr
        assert server.room.left() == []


def _keys_guard_everything_but_health(server: Served) -> None:
    for path in ("/health/live", "/health/ready"):
        assert server.get(path).status_code == 200
    for path in ("/v1/models", "/models", f"/v1/models/{MODEL_NAME}", "/metrics", "/version", "/", "/docs", "/nothing"):
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": f"Basic {KEYS[0]}"}):
            answer = server.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
    for key in ("none", KEYS[0] + "y", KEYS[0][:-1], KEYS[0].upper(), f"{KEYS[0]},{KEYS[1]}"):
        with pytest.raises(openai.AuthenticationError) as refused:
            server.client(api_key=key).chat.completions.create(model=MODEL_NAME, messages=[user("Hello")])
        assert refused.value.code == "invalid_api_key"
        assert KEYS[0] not in refused.value.message
    for key in KEYS:
        works(server, api_key=key)
    assert not any(key in server.stderr for key in KEYS)


def test_a_drain_timeout_ends_streams_with_an_error_and_not_as_if_they_were_complete():
    with Served("--drain-timeout", "0.5") as server:
        sdk = [Reader(server.client(), n) for n in range(3)]
        raw = [RawReader(server.url, n) for n in range(3, 6)]
        whole = Reader(server.client(), 6, stream=False)
        all_under_way([*sdk, *raw])
        assert whole.is_alive()
        server.signal(signal.SIGTERM)
        for reader in sdk:
            assert isinstance(reader.end().error, openai.APIError), reader.finish
            assert "stopped before" in str(reader.error)
            assert reader.finish is None
        for reader in raw:
            assert not reader.end().clean
            assert "[DONE]" not in reader.text
            assert json.loads(reader.text.strip().rpartition("data: ")[2])["error"]["message"]
        assert isinstance(whole.end().error, openai.InternalServerError)
        assert whole.error.status_code == 503
        assert server.wait() == 0
        assert "Traceback" not in server.stderr, server.stderr
        assert server.room.left() == []


def test_a_second_sigterm_ends_it_at_once_and_more_of_them_spoil_nothing():
    """Who is impatient goes on pressing Ctrl-C, also while the engine is being stopped."""
    with Served("--drain-timeout", "300") as server:
        reader = Reader(server.client(), 0)
        all_under_way([reader])
        server.signal(signal.SIGTERM)
        wait_for(lambda: not server.is_ready())
        assert reader.is_alive()
        server.signal(signal.SIGTERM)
        assert isinstance(reader.end().error, openai.APIError)
        while server.process.poll() is None:
            server.signal(signal.SIGTERM)
            time.sleep(0.1)
        assert server.wait() == 0
        assert "Traceback" not in server.stderr, server.stderr
        assert server.room.left() == []


@pytest.mark.parametrize("how", ["Ctrl-C in a terminal", "systemd stop"])
def test_a_signal_to_all_processes_drains_too(how):
    """A terminal sends Ctrl-C to every process of the job, systemd SIGTERM to every process of the service."""
    with Served("--drain-timeout", "300") as server:
        readers = [Reader(server.client(), n, tokens=700) for n in range(2)]
        all_under_way(readers)
        if how == "systemd stop":
            server.signal_all(signal.SIGTERM)
        else:
            server.signal_job(signal.SIGINT)
        for reader in readers:
            assert (reader.end().error, reader.finish) == (None, "length")
        assert server.wait() == 0
        assert "Traceback" not in server.stderr, server.stderr
        assert server.room.left() == []


def test_a_signal_that_was_ignored_at_the_start_stays_ignored():
    """`nohup opsin serve &`, and what a script starts with `&`: in both processes, and in an engine started again."""
    with Served(ignored=(signal.SIGHUP, signal.SIGINT)) as server:
        for number in (signal.SIGHUP, signal.SIGINT):
            server.signal_job(number)
            server.signal_all(number)
        engine = server.engine
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: [pid for pid in server.children() if pid != engine and os.getsid(pid) == pid], GENEROUS)
        server.signal_job(signal.SIGHUP)  # (Python itself may not have started yet in the new one)
        wait_for(server.is_ready, GENEROUS)
        works(server)
        assert server.metrics()["opsin_engine_restarts_total"] == 1, server.stderr
        server.close()


def test_a_terminal_that_closes_ends_its_server_in_order():
    with Served("--drain-timeout", "300") as server:
        reader = Reader(server.client(), 0)
        all_under_way([reader])
        server.signal_job(signal.SIGHUP)
        assert (reader.end().error, reader.finish) == (None, "length")
        assert server.wait() == 0
        assert server.room.left() == []


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_sigterm_while_it_loads(seconds):
    with Served(ready=False) as server:
        time.sleep(seconds)
        server.signal(signal.SIGTERM)
        code = server.wait()
        assert code in (0, -signal.SIGTERM)  # (Python itself may not have started yet)
        assert "Traceback" not in server.stderr, server.stderr
        assert server.room.left() == []


SLOW_NAMES = """
import socket, time

real = socket.getaddrinfo

def slow(host, *arguments, **options):
    if host == "slow.test":
        time.sleep(60)
    return real(host, *arguments, **options)

socket.getaddrinfo = slow
"""


def test_a_name_server_that_does_not_answer_does_not_keep_it_from_ending(tmp_path):
    """The C library's lookup cannot be interrupted, and Python waits for its own threads when it ends."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_NAMES)
    with Served("--media-timeout", "0.5", env={"PYTHONPATH": str(tmp_path)}) as server:
        part = {"type": "image_url", "image_url": {"url": "http://slow.test/x.png"}}
        with pytest.raises(openai.BadRequestError, match="--media-timeout"):
            server.client().chat.completions.create(model=MODEL_NAME, messages=[{"role": "user", "content": [part]}])
        server.signal(signal.SIGTERM)
        assert server.wait(GENEROUS) == 0


@pytest.mark.nightly
def test_a_hundred_sigterms(record_property):
    """At random moments from start to work: nothing is cut that had begun, and nothing is left."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    rng = random.Random(seed)
    cut, ends, seconds = [], [], []
    for i in range(100):
        with Served("--drain-timeout", "300", ready=False) as server:
            readers = []
            if i % 2:
                server.wait_announced()
                readers = [Reader(server.client(), n, stream=rng.random() < 0.7, tokens=100) for n in range(6)]
                time.sleep(rng.random() * 0.5)
            else:
                time.sleep(rng.random() * 6)
            server.signal(signal.SIGTERM)
            start = time.monotonic()
            for reader in readers:
                error = reader.end().error
                refused = isinstance(error, openai.InternalServerError) and error.code == "draining"
                if not refused and (error is not None or reader.finish != "length"):
                    cut.append(f"server {i}: {reader.finish} {error!r}")
            code = server.wait()
            seconds.append(time.monotonic() - start)
            if code not in (0, -signal.SIGTERM) or "Traceback" in server.stderr or server.room.left():
                ends.append(f"server {i}: {code} {server.room.left()} {server.stderr[-2000:]}")
    found = f"{len(cut)} answers cut, {len(ends)} ends that were not clean, slowest end {max(seconds):.1f} s"
    record_property("result", f"half of them under 6 requests: {found}; seed {seed}")
    print(*cut, *ends, sep="\n")
    assert not cut
    assert not ends


# --------------------------------------------------------------------------------------- killed


def test_an_engine_killed_under_load_is_an_error_for_each_request_and_starts_again():
    with Served() as server:
        client = server.client()
        streams = [Reader(client, n) for n in range(3)]
        raw = [RawReader(server.url, n) for n in range(3, 6)]
        whole = [Reader(client, n, stream=False) for n in (6, 7)]
        all_under_way([*streams, *raw])
        wait_for(lambda: server.running() == 8)
        engine = server.engine
        os.kill(engine, signal.SIGKILL)
        for reader in streams:
            assert isinstance(reader.end().error, openai.APIError), "the end of the stream looked like success"
            assert reader.finish is None
            assert str(reader.error)
        for reader in raw:
            assert not reader.end().clean
            assert "[DONE]" not in reader.text
            assert json.loads(reader.text.strip().rpartition("data: ")[2])["error"]["type"] == "server_error"
        for reader in whole:
            assert isinstance(reader.end().error, openai.InternalServerError)
            assert reader.error.code == "engine_failed"
        assert server.get("/health/live").status_code == 200
        _restarted(server, engine)
        assert re.search(r"^(WARNING|ERROR) opsin\S* .*engine", server.stderr, re.MULTILINE), (
            "the log says nothing of it"
        )
        found = server.metrics()
        assert found["opsin_engine_restarts_total"] == 1
        assert found['opsin_requests_total{route="/v1/chat/completions",status="500"}'] == 2
        assert found["opsin_requests_broken_total"] == 6

        engine = server.engine
        os.kill(engine, signal.SIGKILL)  # now with nothing to do
        _restarted(server, engine)
        assert server.metrics()["opsin_engine_restarts_total"] == 2
        server.close()


def _restarted(server: Served, dead: int) -> None:
    """Readiness tells it, a patient client need not know of it, and the dead engine's folder is gone."""
    wait_for(lambda: server.children() != [dead], GENEROUS)
    works(server, max_retries=30)
    wait_for(server.is_ready, 5)
    server.wait_idle()
    assert server.engine != dead
    assert len([name for name in server.room.sockets() if name.count("/") == 1]) == 1


def test_an_engine_killed_while_it_loads_stops_the_server_with_a_sentence():
    with Served(ready=False) as server:
        wait_for(server.children, 60)
        time.sleep(0.5)
        os.kill(server.engine, signal.SIGKILL)
        assert "engine" in sentence(server)


def test_a_server_killed_takes_its_engine_along():
    with Served() as server:
        reader = Reader(server.client(), 0)
        all_under_way([reader])
        engine = server.engine
        server.signal(signal.SIGKILL)
        start = time.monotonic()
        server.process.wait(10)
        wait_for(lambda: not alive(engine), 2, "the engine is still there")
        print(f"the engine left after {time.monotonic() - start:.2f} s")
        assert isinstance(reader.end().error, openai.APIError | httpx.HTTPError)


@pytest.mark.nightly
def test_an_engine_that_hangs_does_not_keep_the_server_from_ending(record_property):
    with Served("--drain-timeout", "1") as server:
        reader = Reader(server.client(), 0)
        all_under_way([reader])
        os.kill(server.engine, signal.SIGSTOP)
        wait_for(lambda: not server.is_ready(), 60, "an engine that says nothing counts as ready")
        server.signal(signal.SIGTERM)
        start = time.monotonic()
        assert isinstance(reader.end().error, openai.APIError)
        assert server.wait() == 0
        assert server.room.left() == []
        record_property("result", f"ended {time.monotonic() - start:.1f} s after SIGTERM, --drain-timeout 1")


# --------------------------------------------------------------------------------------- does not start


def _no_such_folder(folder: Path) -> tuple[str, str]:
    return str(folder / "nowhere"), "nowhere"


def _an_empty_folder(folder: Path) -> tuple[str, str]:
    folder.mkdir()
    return str(folder), "config.json"


def _a_file(folder: Path) -> tuple[str, str]:
    folder.write_text("{}")
    return str(folder), str(folder)


def _copied(folder: Path) -> Path:
    shutil.copytree(MINI, folder)
    return folder


def _truncated_weights(folder: Path) -> tuple[str, str]:
    weights = _copied(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return str(folder), "model.safetensors"


def _a_header_of_nothing(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "model.safetensors").write_bytes(b"\xff" * 64)
    return str(folder), "model.safetensors"


def _no_weights(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "model.safetensors").unlink()
    return str(folder), "safetensors"


def _no_tokenizer(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "tokenizer.json").unlink()
    return str(folder), "tokenizer.json"


def _broken_tokenizer(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "tokenizer.json").write_text('{"model": {}}')
    return str(folder), "tokenizer.json"


def _broken_config(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "config.json").write_text('{"model_type": ')
    return str(folder), "config.json"


def _changed_config(folder: Path, **changes: object) -> str:
    file = _copied(folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(folder)


def _unknown_family(folder: Path) -> tuple[str, str]:
    return _changed_config(folder, model_type="perceiver_x"), "perceiver_x"


def _quantized(folder: Path) -> tuple[str, str]:
    return _changed_config(folder, quantization_config={"quant_method": "awq"}), "awq"


def _other_sizes(folder: Path) -> tuple[str, str]:
    text = json.loads((MINI / "config.json").read_text())["text_config"]
    return _changed_config(folder, text_config=text | {"intermediate_size": 384}), "512"


def _pickled_weights(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "model.safetensors").rename(folder / "pytorch_model.bin")
    return str(folder), ".bin"


BAD_MODELS = [
    _no_such_folder,
    _an_empty_folder,
    _a_file,
    _truncated_weights,
    _a_header_of_nothing,
    _no_weights,
    _no_tokenizer,
    _broken_tokenizer,
    _broken_config,
    _unknown_family,
    _quantized,
    _other_sizes,
    _pickled_weights,
]


@pytest.mark.parametrize("make", BAD_MODELS, ids=lambda make: make.__name__.strip("_"))
def test_a_bad_model_is_one_sentence(tmp_path, make):
    model, word = make(tmp_path / "model")
    with Process("serve", "--port", "0", model) as process:
        assert word in sentence(process)


def test_a_busy_port_is_one_sentence():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with Process("serve", "--port", str(port)) as process:
            assert f"port {port} is in use" in sentence(process)


@pytest.mark.parametrize("name", ["[/no]", "[red]", "a b", "ünïcödé", "it's"])
def test_a_path_is_named_as_it_was_written(name):
    """Brackets are no markup."""
    with Process("serve", "--port", "0", f"/nowhere/{name}") as process:
        assert f"/nowhere/{name}" in sentence(process)


def test_a_model_in_a_folder_of_an_odd_name(tmp_path):
    folder = tmp_path / "my [red] model's folder"
    shutil.copytree(MINI, folder)
    with Served(str(folder)) as server:
        assert server.client().models.list().data[0].id == folder.name
        assert folder.name in server.stderr
        server.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_listening_beyond_this_machine_needs_a_key(host):
    with Process("serve", "--port", "0", "--host", host) as process:
        said = sentence(process)
        assert "--api-key" in said
        assert host in said


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--host", "no.such.host.invalid", "--api-key", "k"), "no.such.host.invalid"),
        (("--host", "192.0.2.1", "--api-key", "k"), "192.0.2.1"),  # an address that is not this machine's
        (("--port", "70000"), "70000"),
        (("--media-allow", "not a host"), "--media-allow"),
        (("--max-image-pixels", "900000000"), "--max-image-pixels"),
        (("--max-context", "1000", "--kv-memory", "1MB"), "--max-context"),
        (("--api-key", ""), "--api-key"),
        (("--plugins", "llava"), "qwen2_vl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_settings_that_cannot_be_are_one_sentence(words, hint):
    with Process("serve", *(() if "--port" in words else ("--port", "0")), *words) as process:
        assert hint in sentence(process)
