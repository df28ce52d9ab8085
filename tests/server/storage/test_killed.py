"""kill -9 in the middle of the work, and a disk that fills up: nothing acknowledged is lost, and nothing is spoilt."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from opsin_server.storage_config import StorageConfig
from support import killed
from support.stored import python

FULL_DISK = """
import io, itertools, json, sys
from pathlib import Path
from opsin_server.errors import ConfigError, StorageFailed
from opsin_server.storage.records import NewVersion, SourceFile
from opsin_server.storage.state import State
from opsin_server.storage_config import StorageConfig

disk = Path(sys.argv[1])
config = StorageConfig(data_dir=str(disk / "data"))

def fill(state, name, size):
    blob = state.blobs.put("default", io.BytesIO(name.encode().ljust(size)), kind="x", name="y", limit=2**20)
    facts = NewVersion(blob.digest, blob.size, 8, ("q",), "upload", {"x": SourceFile(blob.digest, blob.size)}, "shape")
    return state.adapters.add_version("default", "a", facts, promote=True)

kept, failures = [], 0
with State.open(config) as state:
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)
    for size in (40_000, 4_000, 1):  # until nothing fits, not even a row
        try:
            for number in itertools.count():
                kept.append(fill(state, f"{size} {number}", size))
        except StorageFailed:
            failures += 1
    ballast.unlink()
    kept.append(fill(state, "there is room again", 40_000))
    state.adapters.delete_version("default", "a", kept[0].version)
    del kept[0]
with State.open(config) as state:
    lost = [version for version in kept if state.adapters.version("default", "a", version.version) != version]
    sound = [state.blobs.verify("default", version.facts.digest).size for version in kept]
    left = len(list(state.directory.tmp.iterdir()))
print(json.dumps({"kept": len(kept), "failures": failures, "lost": len(lost), "left": left}))
try:
    (disk / "ballast").write_bytes(b"x" * 10**7)
except OSError:
    pass
try:
    State.open(StorageConfig(data_dir=str(disk / "another"))).close()
    print("it opened")
except ConfigError as error:
    print(error)
"""


def kill(config: StorageConfig, rounds: int) -> dict:
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    command = [sys.executable, killed.__file__, msgspec.json.encode(config).decode(), str(rounds), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["faults"] == []
    assert found["acknowledged"] >= rounds * 3 // 4
    return found


def test_a_killed_writer_loses_nothing(config: StorageConfig):
    kill(config, 20 if config.database is None else 5)


@pytest.mark.nightly
def test_a_writer_killed_200_times_loses_nothing(config: StorageConfig, record_property):
    record_property("result", kill(config, 200))


def test_a_full_disk_is_said_and_passes(tmp_path: Path):
    """On a file system of a megabyte of its own."""
    mount = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"', str(tmp_path))
    try:
        able = subprocess.run([*mount, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare to mount a small disk with")
    if able.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted: {able.stderr.strip()}")
    with python(FULL_DISK, tmp_path, before=mount) as process:
        out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    found, said = out.splitlines()
    numbers = json.loads(found)
    assert numbers["failures"] == 3
    assert numbers["kept"] > 3
    assert (numbers["lost"], numbers["left"]) == (0, 0)
    assert said.startswith(f"{tmp_path / 'another'}")
    assert said.endswith("No space left on device") or "full" in said
