"""Two servers on one PostgreSQL and one bucket: what one is told of adapters, the other does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from support import small_adapters
from support.adapter_answers import ask, packed, upload
from support.postgres import Absent, Postgres
from support.s3 import S3
from support.served import Served, wait_for


@pytest.fixture(scope="module")
def storage() -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    with ExitStack() as until_the_end:
        try:
            postgres = Postgres()
        except Absent as why:
            pytest.skip(str(why))
        until_the_end.callback(postgres.stop)
        s3 = S3()
        until_the_end.callback(s3.stop)
        yield ("--database", postgres.url(), "--blobs", s3.bucket()), s3.environment


@pytest.mark.nightly
def test_servers_that_share_a_database_follow_each_other(
    storage: tuple[tuple[str, ...], dict[str, str]], tmp_path: Path
) -> None:
    options, environment = storage
    archives = [packed(small_adapters.write(tmp_path / str(seed), seed)) for seed in range(2)]
    with ExitStack() as servers:
        one, other = (
            servers.enter_context(
                Served(storage=(*options, "--data-dir", str(tmp_path / name)), env=environment, ready=True)
            )
            for name in ("one", "other")
        )
        for number, archive in enumerate(archives, 1):
            said = upload(one.url, "shared", archive)
            wait_for(lambda v=number: current(other) == v, 20, "the other server does not know")
            answer = ask(other.url, "shared", 0)
            assert (answer.label, f"sha256:{answer.digest}") == (f"shared@v{number}", said["digest"])
            assert answer == ask(one.url, "shared", 0)
        httpx.post(f"{other.url}/v1/adapters/shared/rollback", trust_env=False).raise_for_status()
        wait_for(lambda: current(one) == 1, 20, "the first server does not know")
        os.kill(other.pid, signal.SIGKILL)
        httpx.delete(f"{one.url}/v1/adapters/shared", trust_env=False).raise_for_status()
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            ask(one.url, "shared", 0)


def current(server: Served) -> int | None:
    answer = server.get("/v1/adapters/shared")
    return answer.json()["current_version"] if answer.is_success else None
