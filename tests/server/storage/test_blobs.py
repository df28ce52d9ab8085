"""Files by their content: on each database and in each place, and never a row without its bytes."""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from opsin_server.errors import BadRequest, BlobDamaged, ConfigError, NotFound, StorageFailed, TooLarge
from opsin_server.storage.blob_files import LocalFiles
from opsin_server.storage.blobs import CHUNK, GRACE_SECONDS, Collected
from opsin_server.storage.file_cache import YOUNG_SECONDS, FileCache
from opsin_server.storage.state import State
from opsin_server.storage_config import StorageConfig
from support.s3 import S3
from support.stored import TENANT, add, digests, put, rows

DATA = b"weights " * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["sqlite, local", "postgres, s3"])
def where(request: pytest.FixtureRequest) -> tuple[str | None, str | None]:
    """A database and a place, each in a test of its own."""
    if request.param == "sqlite, local":
        return None, None
    return request.getfixturevalue("postgres_url"), request.getfixturevalue("bucket")


@pytest.fixture
def config(tmp_path: Path, where: tuple[str | None, str | None], request: pytest.FixtureRequest) -> StorageConfig:
    if where == (None, None):
        return request.getfixturevalue("local_config")
    return StorageConfig(data_dir=str(tmp_path / "data"), database=where[0], blobs=where[1])


@pytest.fixture
def local_state(local_config: StorageConfig, clock) -> Iterator[State]:
    """SQLite and a folder, for what is the same everywhere."""
    with State.open(local_config, clock) as opened:
        yield opened


class Place:
    """Where the bytes lie, behind the store's back."""

    def __init__(self, state: State, url: str | None, request: pytest.FixtureRequest) -> None:
        self._state = state
        if url is not None:
            s3: S3 = request.getfixturevalue("s3")
            self._client, self._bucket = s3.client, urlsplit(url).netloc
        self._local = url is None

    def write(self, digest: str, data: bytes) -> None:
        if self._local:
            path = self._state.files.path(digest)
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(data)
        else:
            self._client.put_object(Bucket=self._bucket, Key=f"some/prefix/{digest[:2]}/{digest}", Body=data)

    def remove(self, digest: str) -> None:
        if self._local:
            self._state.files.path(digest).unlink()
        else:
            self._client.delete_object(Bucket=self._bucket, Key=f"some/prefix/{digest[:2]}/{digest}")


@pytest.fixture
def place(state: State, config: StorageConfig, request: pytest.FixtureRequest) -> Place:
    return Place(state, config.blobs, request)


def tidy(state: State) -> None:
    """Nothing half-written is left, and each row has its bytes."""
    assert list(state.directory.tmp.iterdir()) == []
    assert {row[1] for row in rows(state)["blobs"]} <= digests(state)


def test_what_is_put_comes_back(state: State, tmp_path: Path):
    blob = put(state, DATA)
    assert (blob.digest, blob.size, blob.kind, blob.name) == (DIGEST, len(DATA), "adapter", "a.safetensors")
    assert state.blobs.get(TENANT, DIGEST) == blob == state.blobs.verify(TENANT, DIGEST)
    with state.blobs.open(TENANT, DIGEST) as opened:
        assert opened.read() == DATA
    path = state.blobs.local_path(TENANT, DIGEST, verify=True)
    assert path.read_bytes() == DATA
    assert path.is_relative_to(state.directory.path)
    file = tmp_path / "file"
    file.write_bytes(DATA + b"!")
    assert state.blobs.put(TENANT, file, kind="x", name="y", limit=2**20).size == len(DATA) + 1
    assert file.exists()
    tidy(state)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_sizes_around_a_chunk(local_config: StorageConfig, size: int):
    data = random.Random(size).randbytes(size)
    with State.open(local_config) as state:
        blob = put(state, data)
        assert (blob.digest, blob.size) == (hashlib.sha256(data).hexdigest(), size)
        assert state.blobs.local_path(TENANT, blob.digest).read_bytes() == data


def test_the_same_content_is_one_file(state: State):
    first, second = put(state, DATA), put(state, DATA, name="another")
    assert first == second
    assert digests(state) == {DIGEST}
    other = put(state, DATA, tenant="other", name="another")
    assert (other.digest, other.name) == (DIGEST, "another")
    assert digests(state) == {DIGEST}
    tidy(state)


def test_a_tenant_has_its_own(local_state: State):
    put(local_state, DATA, tenant="other")
    for ask in (local_state.blobs.get, local_state.blobs.open, local_state.blobs.verify, local_state.blobs.local_path):
        with pytest.raises(NotFound, match=DIGEST):
            ask(TENANT, DIGEST)


def test_the_limit_is_the_last_byte(local_state: State):
    stream = io.BytesIO(DATA)
    assert local_state.blobs.put(TENANT, stream, kind="x", name="fits", limit=len(DATA)).size == len(DATA)
    with pytest.raises(TooLarge, match=r"over has more than 8,000 bytes"):
        local_state.blobs.put(TENANT, io.BytesIO(DATA + b"!"), kind="x", name="over", limit=len(DATA))
    assert digests(local_state) == {DIGEST}
    tidy(local_state)


class Endless(io.RawIOBase):
    """Gives bytes for ever, and counts them."""

    def __init__(self) -> None:
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        self.given += size
        return b"x" * size


class Broken(Endless):
    def read(self, size: int = -1) -> bytes:
        if self.given > 2 * CHUNK:
            raise ConnectionResetError("the client left")
        return super().read(size)


def test_a_stream_without_end_is_read_to_the_limit(local_state: State):
    stream = Endless()
    with pytest.raises(TooLarge):
        local_state.blobs.put(TENANT, stream, kind="x", name="y", limit=5 * CHUNK)
    assert stream.given <= 7 * CHUNK
    assert digests(local_state) == set()
    tidy(local_state)


def test_a_stream_that_breaks_leaves_nothing(local_state: State):
    with pytest.raises(ConnectionResetError):
        local_state.blobs.put(TENANT, Broken(), kind="x", name="y", limit=2**30)
    assert (digests(local_state), rows(local_state)["blobs"]) == (set(), [])
    tidy(local_state)


def test_no_row_comes_before_its_bytes(
    local_state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(file: Path, digest: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(local_state.files, "place", full)
        with pytest.raises(StorageFailed) as failed:
            put(local_state, DATA)
    assert "space" not in str(failed.value)
    assert "No space left on device" in caplog.text
    assert rows(local_state)["blobs"] == []
    put(local_state, DATA)
    tidy(local_state)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a" * 256, "ünïcödé 🐈", "-rf", "..", " "])
def test_a_clients_name_is_only_data(local_config: StorageConfig, name: str):
    with State.open(local_config) as state:
        assert state.blobs.get(TENANT, put(state, DATA, name=name).digest).name == name
        assert digests(state) == {DIGEST}


@pytest.mark.parametrize("name", ["", "a" * 257, "a\0b", "a\nb", "\ud800"])
def test_names_that_no_database_holds_are_refused(local_config: StorageConfig, name: str):
    with State.open(local_config) as state:
        with pytest.raises(BadRequest, match="the file's name has"):
            put(state, DATA, name=name)
        assert digests(state) == set()


@pytest.mark.parametrize(
    "digest", ["../../etc/passwd", "", "A" * 64, DIGEST[:-1], DIGEST + "0", f"{DIGEST}\n", "a/" * 32]
)
def test_what_is_no_digest_becomes_no_path(local_config: StorageConfig, digest: str):
    with State.open(local_config) as state:
        with pytest.raises(NotFound):
            state.blobs.local_path(TENANT, digest)
        with pytest.raises(ValueError, match="is no SHA-256"):
            state.files.size(digest)


# ------------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (None, "is missing"),
        (DATA[:-1], "has 7,999 bytes instead of 8,000"),
        (DATA + b"!", "has (8,001|more than 8,000) bytes"),
    ],
)
def test_missing_and_shortened_files_are_named(state: State, place: Place, spoilt: bytes | None, words: str):
    put(state, DATA)
    if spoilt is None:
        place.remove(DIGEST)
    else:
        place.write(DIGEST, spoilt)
    for ask in (state.blobs.open, state.blobs.verify, state.blobs.local_path):
        with pytest.raises(BlobDamaged, match=words) as damaged:
            ask(TENANT, DIGEST)
        assert DIGEST in str(damaged.value)
    put(state, DATA)  # the same upload again mends it
    assert state.blobs.verify(TENANT, DIGEST).size == len(DATA)


def test_one_flipped_bit_is_named(state: State, place: Place):
    put(state, DATA)
    place.write(DIGEST, DATA[:4000] + bytes([DATA[4000] ^ 1]) + DATA[4001:])
    with pytest.raises(BlobDamaged, match=f"{DIGEST} holds other bytes"):
        state.blobs.verify(TENANT, DIGEST)
    with pytest.raises(BlobDamaged, match="holds other bytes"):
        state.blobs.local_path(TENANT, DIGEST, verify=True)
    put(state, DATA)
    assert state.blobs.verify(TENANT, DIGEST).size == len(DATA)
    tidy(state)


def test_files_are_read_only_and_their_owners(local_config: StorageConfig):
    with State.open(local_config) as state:
        path = state.blobs.local_path(TENANT, put(state, DATA).digest)
        assert path == state.directory.blobs / DIGEST[:2] / DIGEST
        assert path.stat().st_mode & 0o777 == 0o400
        path.unlink()
        path.write_bytes(b"flipped bits")
        put(state, DATA)
        assert path.read_bytes() == DATA  # an upload mends other bytes as well


# -------------------------------------------------------------------------------------------------- collection


def test_what_nothing_names_goes_after_its_grace(state: State, clock):
    add(state, "kept", b"kept")
    put(state, DATA)
    assert state.blobs.collect() == Collected(0, 0)
    clock.ahead += GRACE_SECONDS - 10
    assert state.blobs.collect() == Collected(0, 0)
    clock.ahead += 20
    assert state.blobs.collect() == Collected(1, 1)
    assert len(digests(state)) == 2
    with pytest.raises(NotFound):
        state.blobs.get(TENANT, DIGEST)
    tidy(state)


def test_the_grace_begins_when_the_last_name_goes(local_state: State, clock):
    version = add(local_state, "a", b"1")
    clock.ahead += 10 * GRACE_SECONDS
    assert local_state.blobs.collect() == Collected(0, 0)
    local_state.adapters.delete_adapter(TENANT, "a")
    assert local_state.blobs.collect() == Collected(0, 0)
    assert local_state.blobs.verify(TENANT, version.facts.digest)
    clock.ahead += GRACE_SECONDS + 10
    assert local_state.blobs.collect() == Collected(2, 2)
    assert digests(local_state) == set()


def test_an_upload_of_the_same_begins_the_grace_again(local_state: State, clock):
    put(local_state, DATA)
    clock.ahead += GRACE_SECONDS + 10
    put(local_state, DATA)
    assert local_state.blobs.collect() == Collected(0, 0)
    assert local_state.blobs.verify(TENANT, DIGEST)


def test_bytes_stay_for_another_tenant(state: State, clock):
    put(state, DATA)
    clock.ahead += GRACE_SECONDS + 10
    put(state, DATA, tenant="other")
    assert state.blobs.collect() == Collected(1, 0)
    assert state.blobs.verify("other", DIGEST)
    with pytest.raises(NotFound):
        state.blobs.verify(TENANT, DIGEST)


def test_bytes_without_a_row_go_when_they_are_old(state: State, place: Place, clock):
    """As when the process was killed between the two."""
    place.write(DIGEST, DATA)
    assert state.blobs.collect() == Collected(0, 0)
    clock.ahead += GRACE_SECONDS + 10
    assert state.blobs.collect() == Collected(0, 1)
    assert digests(state) == set()


def test_uploads_and_collections_at_the_same_time(state: State):
    """Four contents, put and taken away again and again: at each end a row has its bytes."""
    stop, failures, collected = threading.Event(), [], []

    def upload(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(8):
                data = b"content %d" % rng.randrange(4)
                blob = put(state, data)
                try:
                    with state.blobs.open(TENANT, blob.digest) as opened:
                        assert opened.read() == data
                except (NotFound, BlobDamaged, StorageFailed):
                    pass  # collected meanwhile: a grace below zero is no promise
        except Exception as error:
            failures.append(error)

    def collect() -> None:
        while not stop.is_set():
            try:
                found = state.blobs.collect(grace=-1000)
                collected.append(found.rows)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=upload, args=(seed,)) for seed in range(3)]
    collector = threading.Thread(target=collect)
    for thread in (*threads, collector):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    collector.join()
    assert failures == []
    assert sum(collected) > 0
    tidy(state)
    put(state, DATA)
    state.blobs.collect(grace=-1000)
    assert digests(state) == {row[1] for row in rows(state)["blobs"]}


# ------------------------------------------------------------------------------------------------------ places


def test_a_place_belongs_to_one_database(config: StorageConfig, tmp_path: Path, postgres, s3):
    """Otherwise each would collect what only the other knows."""
    with State.open(config) as state:
        put(state, DATA)
    other = StorageConfig(data_dir=config.data_dir, database=postgres.url(), blobs=config.blobs)
    with pytest.raises(ConfigError, match="holds the files of another database than postgresql://") as refused:
        State.open(other)
    assert (config.blobs or config.data_dir) in str(refused.value)
    with State.open(config) as state:
        assert state.blobs.verify(TENANT, DIGEST)


@pytest.fixture
def remote(tmp_path: Path, bucket: str) -> Iterator[State]:
    with State.open(StorageConfig(data_dir=str(tmp_path / "data"), blobs=bucket)) as state:
        yield state


def test_a_remote_file_is_fetched_once(remote: State, monkeypatch: pytest.MonkeyPatch):
    put(remote, DATA)
    path = remote.blobs.local_path(TENANT, DIGEST)
    assert path == remote.directory.cache / DIGEST
    with monkeypatch.context() as patched:
        patched.setattr(remote.files, "open", None)
        assert remote.blobs.local_path(TENANT, DIGEST) == path
    path.write_bytes(b"cut off")
    assert remote.blobs.local_path(TENANT, DIGEST).read_bytes() == DATA
    path.unlink()
    assert remote.blobs.local_path(TENANT, DIGEST).read_bytes() == DATA


def test_copies_of_remote_files_are_bounded(remote: State, tmp_path: Path):
    cache = FileCache(remote.directory.cache, remote.directory.tmp, limit=2500)
    found = [put(remote, bytes([number]) * 1000) for number in range(4)]
    paths = [cache.path(blob, remote.files) for blob in found[:3]]
    assert all(path.exists() for path in paths), "what was asked for just now is kept"
    for age, path in enumerate(paths):
        os.utime(path, (0, path.stat().st_mtime - YOUNG_SECONDS - 100 + age))
    cache.path(found[0], remote.files)  # used again
    last = cache.path(found[3], remote.files)
    assert [path.exists() for path in (*paths, last)] == [True, False, False, True]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://no-such-bucket/x", "there is no bucket no-such-bucket"),
        ("s3:///x", "--blobs takes s3://BUCKET/PREFIX"),
        ("s3://key:hunter2@bucket/x", "--blobs takes s3://BUCKET/PREFIX"),
        ("/srv/blobs", "--blobs takes s3://BUCKET/PREFIX"),
        ("file:///srv/blobs", "--blobs takes s3://BUCKET/PREFIX"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(tmp_path: Path, bucket: str, url: str, words: str):
    with pytest.raises(ConfigError) as refused:
        State.open(StorageConfig(data_dir=str(tmp_path / "data"), blobs=url))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_store_that_does_not_answer_is_one_sentence(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch):
    from s3fs import S3FileSystem  # half a second

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match=r"--blobs s3://bucket-.* cannot be used") as refused:
        State.open(StorageConfig(data_dir=str(tmp_path / "data"), blobs=bucket))
    assert "\n" not in str(refused.value)
    S3FileSystem.clear_instance_cache()


def test_a_local_place_is_a_folder(local_config: StorageConfig):
    with State.open(local_config) as state:
        assert isinstance(state.files, LocalFiles)
