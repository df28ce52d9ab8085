"""The data directory: who owns it, and what lies where in it.

lock       the process id of the owner, who holds an flock on it
opsin.db   the SQLite database, unless --database names another
blobs/     files by their SHA-256, unless --blobs names another place
cache/     copies of files that lie in another place
tmp/       files that are being written; emptied at a start
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from opsin_server.errors import ConfigError
from opsin_server.storage_config import StorageConfig

LOCK = "lock"
DATABASE = "opsin.db"
BLOBS = "blobs"
JOBS = "jobs"
FOUND_ON_EMPTY_VOLUMES = {"lost+found"}


class DataDirectory:
    """One that this process owns until `close`. Other users cannot enter it."""

    def __init__(self, path: Path, lock: int, *, ephemeral: bool) -> None:
        self.path, self._lock, self._ephemeral = path, lock, ephemeral
        self.database = path / DATABASE
        self.blobs, self.cache, self.tmp = (path / name for name in (BLOBS, "cache", "tmp"))

    @classmethod
    def open(cls, path: Path) -> DataDirectory:
        """Makes the directory where there is none. Its path is absolute. Raises ConfigError where it cannot be this
        process's own."""
        return cls._opened(path, ephemeral=False)

    @classmethod
    def temporary(cls) -> DataDirectory:
        """A new one, which `close` removes. Raises ConfigError."""
        try:
            path = Path(tempfile.mkdtemp(prefix="opsin_data_"))
        except OSError as error:
            raise ConfigError(f"--ephemeral finds no temporary directory: {error.strerror}") from error
        return cls._opened(path, ephemeral=True)

    def owner(self) -> str:
        """The name by which a database knows whose jobs and batches these are."""
        folder = self.path / JOBS
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / "owner"
        if not path.exists():
            part = folder / ".owner"
            part.write_text(secrets.token_hex(16))
            part.replace(path)
        return path.read_text()

    @classmethod
    def _opened(cls, path: Path, *, ephemeral: bool) -> DataDirectory:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_ours(path)
            lock = _lock(path)
            try:
                opened = cls(path, lock, ephemeral=ephemeral)
                opened._prepare()
            except BaseException:
                os.close(lock)
                raise
        except FileExistsError:
            raise ConfigError(f"{path} is not a directory") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be used as the data directory: {error.strerror}") from error
        return opened

    def _prepare(self) -> None:
        if self.path.stat().st_uid == os.geteuid():  # (a volume's root may be another's who lets us write)
            self.path.chmod(0o700)
        shutil.rmtree(self.tmp, ignore_errors=True)
        for folder in (self.blobs, self.cache, self.tmp):
            folder.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        """Lets go of the directory. The lock's file stays: removing it would race with the next owner."""
        if self._ephemeral:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_directory(config: StorageConfig) -> DataDirectory:
    """Raises ConfigError where it cannot be this process's own."""
    return DataDirectory.temporary() if config.ephemeral else DataDirectory.open(data_path(config))


def data_path(config: StorageConfig) -> Path:
    """The data directory's place, unless it is ephemeral."""
    return default_path() if config.data_dir is None else Path(config.data_dir).expanduser().absolute()


def default_path() -> Path:
    """Where XDG's base directories have it. Raises ConfigError where there is no home."""
    stated = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not stated.is_absolute():  # (which is to be passed over, says the standard)
        try:
            stated = Path.home() / ".local" / "share"
        except RuntimeError:
            raise ConfigError("there is no home for the data directory: give --data-dir or --ephemeral") from None
    return stated / "opsin"


def _check_ours(path: Path) -> None:
    """Somebody's own folder must not lose its `tmp` to a slip of the hand."""
    found = {entry.name for entry in path.iterdir()} - FOUND_ON_EMPTY_VOLUMES
    if found and LOCK not in found:
        raise ConfigError(f"{path} is not empty and no data directory of Opsin's: give --data-dir a new directory")


def _lock(path: Path) -> int:
    """The lock's file descriptor. The kernel lets go of the lock when this process ends, however it does."""
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise ConfigError(
            f"{path} is in use by process {owner or 'unknown'}: give another directory with --data-dir, or --ephemeral"
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock
