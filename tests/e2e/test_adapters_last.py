"""What was said of adapters outlives the processes that said it, and is found again or refused by name."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from support.adapter_answers import BASE, Adapters, ask, kill_engine, packed, refused, upload
from support.served import Served, wait_for


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.nightly)])
def test_nothing_acknowledged_is_lost(adapters: Adapters, tmp_path: Path, kills: int) -> None:
    """The API process or the engine is killed in the middle of loads, promotions and alias changes. What was answered
    is there when the server is again, and names answer as before."""
    data, chance, failures = tmp_path / "data", random.Random(kills), list[Exception]()
    known: dict[str, Any] = {"versions": {}, "current": {}, "alias": {}}
    for number in range(kills):
        with Served(storage=("--data-dir", str(data))) as server:
            check_names(server, adapters, known)
            stop = threading.Event()
            writer = threading.Thread(target=write, args=(server.url, adapters, known, chance, stop, failures))
            writer.start()
            wait_for(lambda: known["versions"] or failures, 60, "nothing is acknowledged")
            time.sleep(chance.uniform(0.3, 0.9))
            if number % 2:
                kill_engine(server)
            stop.set() if number % 2 else server.signal(signal.SIGKILL)
            writer.join(60)
            if number % 2:
                check_names(server, adapters, known)
    with Served(storage=("--data-dir", str(data))) as server:
        check_names(server, adapters, known)
    assert not failures
    assert known["versions"], "nothing was acknowledged, so that nothing could be lost"
    with sqlite3.connect(data / "opsin.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def write(
    url: str,
    adapters: Adapters,
    known: dict[str, Any],
    chance: random.Random,
    stop: threading.Event,
    failures: list[Exception],
) -> None:
    """Until the server is gone, or it is told to stop. known: what the server has said; in doubt is what it had not
    answered yet. While the engine is being started again, it may say so."""
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        while not stop.is_set():
            try:
                write_once(client, url, adapters, known, chance)
            except httpx.TransportError:
                return
            except httpx.HTTPStatusError as error:
                if error.response.status_code != 503:
                    failures.append(error)
                    return
                known["doubt"] = None


def write_once(
    client: httpx.Client, url: str, adapters: Adapters, known: dict[str, Any], chance: random.Random
) -> None:
    name, variant = chance.choice("ab"), chance.randrange(6)
    known["doubt"] = name
    said = upload(url, name, adapters.archives[variant], client)
    known["versions"].setdefault(name, {})[said["version"]] = said["digest"]
    known["current"][name] = said["version"]
    version = chance.choice(sorted(known["versions"][name]))
    client.post(f"/v1/adapters/{name}/promote", json={"version": version}).raise_for_status()
    known["current"][name] = version
    known["doubt"] = "alias"
    client.post("/v1/aliases", json={"alias": "alias", "target": name}).raise_for_status()
    known["alias"]["alias"] = name
    known["doubt"] = None


def check_names(server: Served, adapters: Adapters, known: dict[str, Any]) -> None:
    doubt = known.pop("doubt", None)
    for name, versions in known["versions"].items():
        about = server.get(f"/v1/adapters/{name}").json()
        there = {version["version"]: version["digest"] for version in about["versions"]}
        assert there.items() >= versions.items()
        if doubt != name:
            assert about["current_version"] == known["current"][name]
        known["versions"][name], known["current"][name] = there, about["current_version"]
        answer = ask(server.url, name, 2)
        assert answer.label == f"{name}@v{about['current_version']}"
        assert f"sha256:{answer.digest}" == there[about["current_version"]]
        adapters.check(answer, 2)
    for alias, name in known["alias"].items():
        target = server.get(f"/v1/aliases/{alias}").json()["target"]
        assert target == name or doubt == "alias"
        known["alias"][alias] = target


def test_a_flipped_bit_in_a_stored_adapter_is_found(adapters: Adapters, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Served(storage=("--data-dir", str(data))) as server:
        said = upload(server.url, "stars", adapters.archives[0])
        digest = said["digest"].removeprefix("sha256:")
        blob = data / "blobs" / digest[:2] / digest
        content = bytearray(blob.read_bytes())
        content[-5] ^= 4
        blob.chmod(0o600)
        blob.write_bytes(content)
        with pytest.raises((httpx.HTTPStatusError, AssertionError), match=r"it was changed|500"):
            ask(server.url, "stars", 0)
        assert ask(server.url, BASE, 0).text == adapters.expected[""][0]


def test_another_models_adapters_are_told_apart(adapters: Adapters, tmp_path: Path) -> None:
    """One data directory, and then another model, or fewer and smaller slots."""
    storage = ("--data-dir", str(tmp_path / "data"))
    with Served(storage=storage) as server:
        upload(server.url, "stars", adapters.archives[3])
    for flags, why in (
        (("--max-lora-rank", "8"), "has rank 16; the server takes up to 8"),
        (("--max-loras", "0"), "no slots"),
    ):
        with Served(*flags, storage=storage) as server:
            with pytest.raises(httpx.HTTPStatusError) as caught:
                ask(server.url, "stars", 0)
            refused(caught.value.response, 400, why)
            error = caught.value.response.json()["error"]
            assert (error["param"], error["code"]) == ("model", "unsupported_model")
            assert "stars" not in [one["id"] for one in server.get("/v1/models").json()["data"]]
            check_its_batch_fails(server.client(), why)
            assert why in server.get("/v1/adapters/stars").json()["unservable"]
            assert ask(server.url, BASE, 0).text == adapters.expected[""][0]


def check_its_batch_fails(client: openai.OpenAI, why: str) -> None:
    body = {"model": "stars", "messages": [{"role": "user", "content": "Hello"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    end = time.monotonic() + 30
    while (batch := client.batches.retrieve(made.id)).status != "failed":
        assert time.monotonic() < end, batch.status
        time.sleep(0.05)
    assert batch.errors is not None
    (fault,) = batch.errors.data or []
    assert (fault.code, fault.line, fault.param) == ("unsupported_model", 1, "body.model")
    assert why in (fault.message or "")


def test_what_the_command_line_names_is_served_unless_something_was_promoted_since(
    adapters: Adapters, tmp_path: Path
) -> None:
    storage, answered = ("--data-dir", str(tmp_path / "data")), []
    for number, then_upload in ((0, None), (1, 2), (1, None), (0, None)):
        with Served("--adapter", f"stars={adapters.directories[number]}", storage=storage) as server:
            answered.append(ask(server.url, "stars", 0))
            if then_upload is not None:
                upload(server.url, "stars", adapters.archives[then_upload])
    assert [answer.label for answer in answered] == ["stars@v1", "stars@v2", "stars@v3", "stars@v4"]
    assert answered[0].digest == answered[3].digest, "back by the flag"


def test_a_bad_adapter_of_the_command_line_stops_the_start(adapters: Adapters, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.tar").write_bytes(packed(adapters.directories[0]))
    with Served("--adapter", f"x={bad}", ready=False) as server:
        assert server.process.wait(60) == 1
        assert f"opsin: --adapter x={bad}: the adapter x cannot be loaded: it is no adapter" in server.stderr
        assert "Traceback" not in server.stderr
