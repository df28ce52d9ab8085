"""A writer that is killed in the middle of its work, again and again, and what is found then.

    python killed.py CONFIG ROUNDS SEED

prints a line of JSON: what was acknowledged, and what of it was lost. Of one thread, so that it can fork."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import time

import msgspec
from sqlalchemy import select, text

from opsin_server.storage.records import NewVersion, SourceFile
from opsin_server.storage.state import State
from opsin_server.storage.tables import BlobRow
from opsin_server.storage_config import StorageConfig

TENANT = "default"


def write(config: StorageConfig, round_: int, pipe: int) -> None:
    """Adds versions without end, and says so once each is there. What was put and not named is collected meanwhile."""
    with State.open(config) as state:
        for number in range(10**6):
            data = b"%d %d " % (round_, number) * 500
            kept = state.blobs.put(TENANT, io.BytesIO(data), kind="x", name="kept", limit=2**20)
            state.blobs.put(TENANT, io.BytesIO(b"not named " + data), kind="x", name="lost", limit=2**20)
            source = {"x": SourceFile(kept.digest, kept.size)}
            facts = NewVersion(kept.digest, kept.size, 8, ("q",), "upload", source, "shape")
            added = state.adapters.add_version(TENANT, f"adapter-{number % 3}", facts, promote=True)
            os.write(pipe, f"{added.adapter} {added.version} {kept.digest}\n".encode())
            if number % 2:
                state.blobs.collect(grace=-1000)


def acknowledged(config: StorageConfig, round_: int, rng: random.Random) -> list[str]:
    """What a writer said before it was killed: every fourth time as it opens the state, else some time after its first
    word."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            write(config, round_, writer)
        finally:
            os._exit(1)
    os.close(writer)
    first = b"" if round_ % 4 == 0 else os.read(reader, 4096)
    time.sleep(rng.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as rest:
        return (first + rest.read()).decode().splitlines()


def faults(config: StorageConfig, said: list[str]) -> list[str]:
    """Everything that was acknowledged is there, each row has its bytes, and the database is sound."""
    found = []
    with State.open(config) as state:
        if list(state.directory.tmp.iterdir()):
            found.append("half-written files are left")
        for line in said:
            adapter, version, digest = line.split()
            if state.adapters.version(TENANT, adapter, int(version)).facts.digest != digest:
                found.append(f"another version: {line}")
        with state.database.read() as session:
            digests = list(session.scalars(select(BlobRow.digest)))
            if config.database is None and (checked := session.scalar(text("PRAGMA integrity_check"))) != "ok":
                found.append(f"the database is damaged: {checked}")
        for digest in digests:
            state.blobs.verify(TENANT, digest)
    return found


def main() -> None:
    config = msgspec.json.decode(sys.argv[1], type=StorageConfig)
    rng, said, found = random.Random(int(sys.argv[3])), [], []
    State.open(config).close()
    for round_ in range(int(sys.argv[2])):
        said += acknowledged(config, round_, rng)
        found += faults(config, said)
    print(json.dumps({"acknowledged": len(said), "faults": found}))


if __name__ == "__main__":
    main()
