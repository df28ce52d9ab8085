"""kill -9 of a whole server, its API process and its engine, again and again while it trains."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from support.job_ledger import Ledger
from support.served import Room, Served, wait_for
from support.talk import sample, user
from support.webhook_host import WebhookHost, webhook_host

AT_ONCE = 2  # jobs that are not over
EPOCHS = 12
SECONDS = 3.0  # of a life at most, from when it is ready
EARLY = 0.15  # how many of all lives end as they begin
ENDED = "fine_tuning.job.succeeded"


def rows(count: int) -> bytes:
    picture = sample("rocket.png").resize((32, 32))
    turns = [[user(f"Number {i}?", *([picture] if i % 4 == 0 else [])), {"role": "assistant", "content": f"It is {i}."}]
             for i in range(count)]  # fmt: skip
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in turns).encode()


def life(served: Served, ledger: Ledger, host: WebhookHost, seconds: float) -> None:
    """Asks and looks until the server is killed; what fails then was not acknowledged."""
    killer = threading.Timer(seconds, served.signal_all, [signal.SIGKILL])
    client = served.client(timeout=20.0)
    known = list(ledger.files)
    killer.start()
    try:
        with suppress(openai.APIConnectionError):
            if not list(client.webhooks.list()):
                client.webhooks.create(name="ends", url=host.url, event_types=[ENDED])
            ledger.check_files(client, ledger.rng.sample(known, min(2, len(known))))
            while True:
                while len(ledger.going()) < AT_ONCE:
                    ledger.create(client)
                for job_id in ledger.going():
                    ledger.look(client, job_id)
                time.sleep(ledger.rng.uniform(0.0, 0.2))
    finally:
        killer.join()
    served.process.wait(20)


def told(host: WebhookHost) -> set[tuple[str, str]]:
    """Ids of events and of the jobs whose ends they are. (One that was not acknowledged comes again.)"""
    received = list(host.received)
    return {(one.headers["webhook-id"], json.loads(one.body)["data"]["id"]) for one in received}


def lives(kills: int, data: str, ledger: Ledger, host: WebhookHost) -> None:
    room, arguments = Room(), ("--data-dir", data, "--webhook-allow", "127.0.0.1")
    try:
        for _ in range(kills):
            early = ledger.rng.random() < EARLY
            served = Served(*arguments, storage=(), room=room, ready=not early)
            if early:
                time.sleep(ledger.rng.uniform(0.0, 4.0))
                served.signal_all(signal.SIGKILL)
                served.process.wait(20)
                ledger.counted["killed as they began"] += 1
            else:
                life(served, ledger, host, ledger.rng.uniform(0.2, SECONDS))
            ledger.counted["kills"] += 1
    finally:
        room.remove()
    with Served(*arguments, storage=()) as served:
        client = served.client()
        end = time.monotonic() + 300
        while ledger.going():
            assert time.monotonic() < end, {job_id: ledger.events[job_id] for job_id in ledger.going()}
            for job_id in ledger.going():
                ledger.look(client, job_id)
        ledger.check_all(client)
        jobs = set(ledger.jobs.values())
        wait_for(lambda: {job_id for _, job_id in told(host)} == jobs, 180, "an end was not told")
        assert len(told(host)) == len(jobs), "an end was told under two ids"
        served.close()


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_jobs_of_a_server_that_is_killed_200_times(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    ledger = Ledger(random.Random(0), rows(12), rows(2), EPOCHS)
    with webhook_host() as host:
        lives(200, str(tmp_path / "data"), ledger, host)
    found = ledger.counted
    record_property(
        "result",
        f"{found['kills']} kills ({found['killed as they began']} as it began), {len(ledger.jobs)} jobs, "
        f"{found['asked again']} asked for again, {len(ledger.files)} files, {found['events']:,} events, "
        f"{found['steps']:,} steps: nothing lost, nothing twice",
    )
