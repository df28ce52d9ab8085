"""A backup holds everything of one moment, moves between databases and places, and is read as a stranger's would be."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import opsin_server
from opsin_server.errors import ConfigError
from opsin_server.storage.backup import TABLES, backup
from opsin_server.storage.migrations import HEAD, VERSION_TABLE
from opsin_server.storage.records import NewEvent, NewJob, NewUpload
from opsin_server.storage.restore import restore
from opsin_server.storage.state import State
from opsin_server.storage_config import StorageConfig
from support.stored import TENANT, add, digests, new_version, put, rows

NOTHING = hashlib.sha256().hexdigest()
NEXT = f"{int(HEAD) + 1:04}"
NEXT_MIGRATION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{HEAD}"


def upgrade() -> None:
    op.add_column("adapters", sa.Column("note", sa.Text, nullable=False, server_default="from before"))
"""


def fill(state: State) -> None:
    """Something in each table, with every kind of value."""
    for number in range(3):
        add(state, "ünïcödé 🐈", b"%d" % number)
    facts = new_version(state, b"x", pixel_budget={"max_pixels": [1, 2.5, None]}, base_digest="ab", warnings=('"\n',))
    state.adapters.add_version(TENANT, "b", facts, promote=False)
    add(state, "b", b"1", tenant="other")
    state.adapters.rollback(TENANT, "ünïcödé 🐈")
    state.adapters.pin(TENANT, "b", True)
    state.adapters.touch(TENANT, ["b"], 1234567890.125)
    state.aliases.set(TENANT, "x", "b", 1)
    state.aliases.set(TENANT, "base", None)
    file = state.stored_files.add(TENANT, state.blobs.get(TENANT, facts.digest), "ü.jsonl", "fine-tune", 3600)
    state.stored_files.add(TENANT, state.blobs.get(TENANT, facts.digest), "again", "vision")
    upload = state.stored_files.begin_upload(TENANT, NewUpload("vision", "large", 2**40, 3600))
    state.stored_files.add_part(TENANT, upload.id, state.blobs.get(TENANT, file.digest))
    job, _ = state.jobs.create(TENANT, NewJob("me", {"ü": [1.5, None]}, "r", None, (file.digest,)))
    state.jobs.note(TENANT, job.id, [NewEvent("ü", "warn", {"step": 1}, metrics=True)])
    state.jobs.add_checkpoint(TENANT, job.id, 1, "m", {"step": 1}, [])
    add(state, "gone", b"gone")
    state.adapters.delete_adapter(TENANT, "gone")


def named(state: State) -> dict[str, list[tuple]]:
    """Everything in the database that a backup holds: no blobs that nothing names."""
    found = rows(state)
    blobs = {row[-1] for row in found["adapter_version_blobs"]}
    return {**found, "blobs": [row for row in found["blobs"] if row[1] in blobs]}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    config = StorageConfig(data_dir=str(folder / "full"))
    with State.open(config) as state:
        fill(state)
    backup(config, folder / "backup.tar")
    return folder


@pytest.fixture
def full(filled: Path, made: Path, tmp_path: Path) -> tuple[StorageConfig, Path]:
    """A filled data directory and its backup, and an empty one beside them, `target`."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    shutil.copytree(made, tmp_path / "target")
    return StorageConfig(data_dir=str(tmp_path / "full")), tmp_path / "backup.tar"


def test_it_moves_from_sqlite_to_postgres_and_s3_and_back(tmp_path: Path, postgres_url: str, bucket: str):
    here = StorageConfig(data_dir=str(tmp_path / "here"))
    there = StorageConfig(data_dir=str(tmp_path / "there"), database=postgres_url, blobs=bucket)
    back = StorageConfig(data_dir=str(tmp_path / "back"))
    files = [tmp_path / f"{number}.tar" for number in range(3)]
    with State.open(here) as state:
        fill(state)
        expected = named(state)
    for source, target, file, next_of_gone in ((here, there, files[0], 2), (there, back, files[1], 3)):
        assert str(file) in backup(source, file)
        assert "restored to" in restore(target, file)
        with State.open(target) as state:
            assert rows(state) == expected
            assert digests(state) == {row[1] for row in expected["blobs"]}
            for tenant, digest, *_ in expected["blobs"]:
                state.blobs.verify(tenant, digest)
            assert add(state, "gone", b"x").version == next_of_gone
            state.adapters.delete_adapter(TENANT, "gone")
            expected = named(state)
    backup(back, files[2])
    assert files[2].stat().st_mode & 0o777 == 0o600


def test_what_a_table_holds_is_in_order_and_in_words(full: tuple[StorageConfig, Path]):
    with tarfile.open(full[1]) as archive:
        names = archive.getnames()
        manifest = json.load(archive.extractfile("manifest.json"))
        adapters = archive.extractfile("tables/adapters.jsonl").read().decode().splitlines()
    assert names[0] == "manifest.json"
    assert [table["name"] for table in manifest["tables"]] == [table.name for table in TABLES]
    assert (manifest["format"], manifest["schema"], manifest["version"]) == (1, HEAD, opsin_server.__version__)
    assert json.loads(adapters[0])["last_used"] == 1234567890.125
    assert "ünïcödé 🐈" in adapters[2]


def test_while_a_server_works_it_is_of_one_moment(config: StorageConfig, tmp_path: Path):
    """Each version that is in it has its files, and no number is missing before the last."""
    stop = threading.Event()
    with State.open(config) as state:
        add(state, "a", b"first")

        def work() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                add(state, "a", b"%d" % number)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for number in range(3):
                backup(config, tmp_path / f"{number}.tar")
        finally:
            stop.set()
            worker.join()
    for number in range(3):
        target = StorageConfig(data_dir=str(tmp_path / f"restored {number}"))
        restore(target, tmp_path / f"{number}.tar")
        with State.open(target) as state:
            versions = state.adapters.versions(TENANT, "a")
            assert [version.version for version in versions] == list(range(1, len(versions) + 1))
            assert state.adapters.get(TENANT, "a").current_version == len(versions)
            for version in versions:
                state.blobs.verify(TENANT, version.facts.digest)


def test_a_file_is_not_overwritten_by_a_slip(full: tuple[StorageConfig, Path], tmp_path: Path):
    config, out = full
    before = out.read_bytes()
    with pytest.raises(ConfigError, match="exists: give another name, or --force"):
        backup(config, out)
    assert out.read_bytes() == before
    assert backup(config, out, force=True)
    with pytest.raises(ConfigError, match="exists"):
        backup(config, tmp_path, force=True)


def test_damaged_files_make_no_backup(full: tuple[StorageConfig, Path], tmp_path: Path):
    config, _ = full
    path = next(Path(config.data_dir, "blobs").glob("??/*"))
    data = path.read_bytes()
    path.unlink()
    for spoilt, words in ((None, "is missing"), (data + b"!", "bytes instead of"), (b"!" * len(data), "other bytes")):
        if spoilt is not None:
            path.write_bytes(spoilt)
        with pytest.raises(ConfigError, match=f"the stored file {path.name} .*{words}"):
            backup(config, tmp_path / "new.tar")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["backup.tar", "full", "target"]


def test_where_nothing_is_there_is_nothing_to_back_up(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist: --data-dir names the server's data directory"):
        backup(StorageConfig(data_dir=str(tmp_path / "none")), tmp_path / "out.tar")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_empty_is_not_restored_to(full: tuple[StorageConfig, Path], tmp_path: Path):
    config, out = full
    with State.open(config) as state:
        before = rows(state)
    with pytest.raises(ConfigError, match=r"opsin\.db is not empty"):
        restore(config, out)
    with State.open(config) as state:
        assert rows(state) == before
        with pytest.raises(ConfigError, match="is in use by process"):
            restore(config, out)


# ------------------------------------------------------------------------------------ what a stranger might send


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}


def written(path: Path, found: dict[str, bytes], edit: Callable[[tarfile.TarInfo], None] = lambda info: None) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in found.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            edit(info)
            archive.addfile(info, io.BytesIO(data))
    return path


def refusal(tmp_path: Path, source: Path) -> str:
    """What is said; the target is as empty as before."""
    target = StorageConfig(data_dir=str(tmp_path / "target"))
    with pytest.raises(ConfigError) as refused:
        restore(target, source)
    with State.open(target) as state:
        assert not any(rows(state).values())
        assert list(state.directory.tmp.iterdir()) == []
    return str(refused.value)


def changed(found: dict[str, bytes], change: Callable[[dict], None]) -> dict[str, bytes]:
    manifest = json.loads(found["manifest.json"])
    change(manifest)
    return {**found, "manifest.json": json.dumps(manifest).encode()}


def with_rows(found: dict[str, bytes], table: str, change: Callable[[list[dict]], None]) -> dict[str, bytes]:
    """The same backup with other rows, and a manifest that fits them."""
    name = f"tables/{table}.jsonl"
    lines = [json.loads(line) for line in found[name].splitlines()]
    change(lines)
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()

    def fit(manifest: dict) -> None:
        for entry in manifest["tables"]:
            if entry["name"] == table:
                entry |= {"rows": len(lines), "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    return changed({**found, name: data}, fit)


def without_table(found: dict[str, bytes], table: str) -> dict[str, bytes]:
    def drop(manifest: dict) -> None:
        manifest["tables"] = [entry for entry in manifest["tables"] if entry["name"] != table]

    return changed({name: data for name, data in found.items() if name != f"tables/{table}.jsonl"}, drop)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("part", ["manifest.json", "tables/", "blobs/"])
def test_a_flipped_bit_is_found(tmp_path: Path, part: str):
    found = members(tmp_path / "backup.tar")
    name = next(name for name in found if name.startswith(part) and found[name])
    data = found[name]
    found[name] = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    said = refusal(tmp_path, written(tmp_path / "spoilt.tar", found))
    assert name in said or part == "manifest.json"
    assert restore(StorageConfig(data_dir=str(tmp_path / "target")), tmp_path / "backup.tar")  # a sound one is taken


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("sixteenths", [0, 1, 3, 6, 9, 12, 15])
def test_what_is_cut_off_is_not_restored(tmp_path: Path, sixteenths: int):
    data = (tmp_path / "backup.tar").read_bytes()
    end = len(data.rstrip(b"\0"))
    (tmp_path / "cut.tar").write_bytes(data[: end * sixteenths // 16])
    assert "cut off" in refusal(tmp_path, tmp_path / "cut.tar")


def _renamed(found: dict[str, bytes], name: str) -> dict[str, bytes]:
    last = list(found)[-1]
    return {(name if key == last else key): data for key, data in found.items()}


FORGERIES = {
    "a path that climbs": (lambda found: _renamed(found, "../../outside"), "'../../outside' where blobs/"),
    "an absolute path": (lambda found: _renamed(found, "/tmp/outside"), "where blobs/"),
    "another digest": (lambda found: _renamed(found, f"blobs/{'0' * 64}"), "where blobs/"),
    "one more": (lambda found: {**found, "blobs/more": b"x"}, "more in it than its manifest says"),
    "no manifest": (lambda found: {"tables/x.jsonl": b""}, "where manifest.json should be"),
    "a newer format": (lambda found: changed(found, lambda m: m.update(format=2)), "format 2, and this Opsin reads"),
    "a newer schema": (lambda found: changed(found, lambda m: m.update(schema="9999")), "the backup has schema 9999"),
    "no JSON": (lambda found: {**found, "manifest.json": b"["}, "manifest.json is not understood"),
    "deep JSON": (lambda found: {**found, "manifest.json": b"[" * 10**5}, "manifest.json is not understood"),
    "a large manifest": (lambda found: {**found, "manifest.json": b" " * 2**21}, "1,048,576 are the most"),
    "a field too many": (lambda found: changed(found, lambda m: m.update(more=1)), "not understood"),
    "another number of rows": (
        lambda found: changed(found, lambda m: m["tables"][0].update(rows=99)),
        "its manifest says 99",
    ),
    "another number of blobs": (lambda found: changed(found, lambda m: m.update(blobs=1)), "not those that its"),
    "a strange table": (
        lambda found: changed(found, lambda m: m["tables"][0].update(name="sqlite_master")),
        "'tables/adapters.jsonl' where tables/sqlite_master.jsonl should be",
    ),
    "a digest that climbs": (
        lambda found: with_rows(found, "blobs", lambda rows: rows[0].update(digest="../../x")),
        "has a digest '../../x'",
    ),
    "a text for a number": (
        lambda found: with_rows(found, "adapters", lambda rows: rows[0].update(next_version="7")),
        "'7' as next_version",
    ),
    "nothing for something": (
        lambda found: with_rows(found, "adapters", lambda rows: rows[0].update(pinned=None)),
        "None as pinned",
    ),
    "a column too few": (
        lambda found: with_rows(found, "adapters", lambda rows: rows[0].pop("pinned")),
        "has columns",
    ),
    "a version without its adapter": (
        lambda found: with_rows(found, "adapter_versions", lambda rows: rows[0].update(adapter="no such")),
        "rows do not fit",
    ),
    "a number of 100 bits": (
        lambda found: with_rows(found, "adapters", lambda rows: rows[0].update(next_version=2**100)),
        "rows do not fit",
    ),
    "half a character": (
        lambda found: with_rows(found, "aliases", lambda rows: rows[0].update(kind="\ud800")),
        "the backup's",
    ),
    "a table too few": (
        lambda found: without_table(found, "adapter_version_blobs"),
        "the backup has tables adapter_promotions, ",
    ),
    "a table that is no part of a backup": (
        lambda found: changed(
            {"manifest.json": found["manifest.json"], "tables/store.jsonl": b"", **found},
            lambda m: m["tables"].insert(0, {"name": "store", "rows": 0, "size": 0, "sha256": NOTHING}),
        ),
        "the backup has tables adapter_promotions, ",
    ),
    "a row twice": (lambda found: with_rows(found, "aliases", lambda rows: rows.append(rows[0])), "rows do not fit"),
}  # fmt: skip


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(("forge", "words"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_backup_is_refused(tmp_path: Path, forge: Callable[[dict], dict], words: str):
    said = refusal(tmp_path, written(tmp_path / "forged.tar", forge(members(tmp_path / "backup.tar"))))
    assert words in said
    assert not Path("/tmp/outside").exists()


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE])
def test_only_plain_files_are_read(tmp_path: Path, kind: bytes):
    def edit(info: tarfile.TarInfo) -> None:
        if info.name.startswith("blobs/"):
            info.type, info.linkname = kind, "/etc/passwd"

    assert "where blobs/" in refusal(tmp_path, written(tmp_path / "links.tar", members(tmp_path / "backup.tar"), edit))


@pytest.mark.usefixtures("full")
def test_a_declared_size_takes_no_memory(tmp_path: Path):
    """A header that promises a terabyte."""
    info = tarfile.TarInfo("manifest.json")
    info.size = 2**40
    (tmp_path / "large.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"{}" * 1000)
    assert "1,048,576 are the most" in refusal(tmp_path, tmp_path / "large.tar")


# ------------------------------------------------------------------------------------------------- older, newer


@pytest.fixture
def newer(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs the next Opsin, which has one more migration."""
    package = tmp_path / "newer" / "opsin_server"
    shutil.copytree(Path(opsin_server.__file__).parent, package, ignore=shutil.ignore_patterns("models", "__pycache__"))
    (package / f"storage/migrations/versions/r{NEXT}_note.py").write_text(NEXT_MIGRATION)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess:
        program = f"import sys; sys.path.insert(0, {str(package.parent)!r}); from opsin_server.cli import main; main()"
        command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_an_older_backup_is_brought_up_to_date(
    full: tuple[StorageConfig, Path], newer: Callable[..., subprocess.CompletedProcess], tmp_path: Path
):
    config, out = full
    target = StorageConfig(data_dir=str(tmp_path / "target"))
    done = newer("restore", out, "--data-dir", target.data_dir)
    assert done.returncode == 0, done.stderr
    with State.open(config) as state:
        expected = rows(state)["aliases"]
    with pytest.raises(ConfigError, match=f"has schema {NEXT}, and Opsin"):
        State.open(target)
    connection = sqlite3.connect(Path(target.data_dir, "opsin.db"))
    assert connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall() == [(NEXT,)]
    assert connection.execute("SELECT DISTINCT note FROM adapters").fetchall() == [("from before",)]
    assert len(connection.execute("SELECT * FROM aliases").fetchall()) == len(expected)
    connection.close()


def test_a_newer_backup_is_refused(
    full: tuple[StorageConfig, Path], newer: Callable[..., subprocess.CompletedProcess], tmp_path: Path
):
    config, _ = full
    done = newer("backup", tmp_path / "newer.tar", "--data-dir", config.data_dir)
    assert done.returncode == 1
    assert f"has schema {HEAD}, not {NEXT}: `opsin serve` brings it up to date" in done.stderr
    assert not (tmp_path / "newer.tar").exists()


def test_a_backup_that_is_ended_leaves_nothing(full: tuple[StorageConfig, Path], tmp_path: Path):
    program = """
import os, signal, sys
from pathlib import Path
from opsin_server.storage import backup
from opsin_server.storage_config import StorageConfig
def end(*_):
    os.kill(os.getpid(), signal.SIGTERM)
backup._add_blob = end
backup.backup(StorageConfig(data_dir=sys.argv[1]), Path(sys.argv[2]))
"""
    command = [sys.executable, "-P", "-c", program, full[0].data_dir, str(tmp_path / "ended.tar")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["backup.tar", "full", "target"]


def test_a_blob_that_nothing_names_is_left_out(full: tuple[StorageConfig, Path], tmp_path: Path):
    config, _ = full
    with State.open(config) as state:
        unnamed = put(state, b"nothing names it").digest
    backup(config, tmp_path / "second.tar")
    assert f"blobs/{unnamed}" not in members(tmp_path / "second.tar")
