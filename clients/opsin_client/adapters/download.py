"""A version of an adapter to this machine: a tar, or its files in a directory. What appears is complete."""

from __future__ import annotations

import os
import secrets
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from opsin_client.adapters.problems import AdapterCommandError
from opsin_client.adapters.upload import CHUNK, FILES


def check_place(out: str, *, force: bool) -> None:
    """Before anything is asked for. A slash at the end: a directory. Raises AdapterCommandError where something is
    that may not be replaced."""
    path = Path(out)
    if not path.absolute().parent.is_dir():
        raise AdapterCommandError(f"{path.absolute().parent}: No such directory")
    if not out.endswith("/"):
        if path.is_dir():
            raise AdapterCommandError(f"{out} is a directory: write {out}/ to have the files in it")
        if path.exists() and not force:
            raise AdapterCommandError(f"{out} is there already (--force replaces it)")
        return
    if not path.exists():
        return
    if not path.is_dir():
        raise AdapterCommandError(f"{path} is no directory")
    there = sorted(child.name for child in path.iterdir())
    if others := [name for name in there if name not in FILES]:
        raise AdapterCommandError(f"{out} holds other things, as {others[0]}: name a new directory")
    if there and not force:
        raise AdapterCommandError(f"{out} holds an adapter already (--force replaces it)")


def save(chunks: Iterable[bytes], out: str) -> int:
    """Writes the tar to the place that was checked; returns the bytes of what is there now. Raises OSError, and
    AdapterCommandError for what is no archive of an adapter."""
    path = Path(out)
    with _beside(path) as scratch:
        archive = scratch / "adapter.tar"
        with archive.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if not out.endswith("/"):
            archive.replace(path)
            return path.stat().st_size
        unpacked = scratch / "files"
        unpacked.mkdir()
        size = _unpack(archive, unpacked)
        if path.exists():
            path.rename(scratch / "replaced")
        unpacked.rename(path)
        return size


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder on the same disk, gone at the end."""
    scratch = path.absolute().parent / f".{path.name}.{secrets.token_hex(4)}"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(archive: Path, to: Path) -> int:
    """Only an adapter's own files, wherever the archive would have them."""
    size = 0
    try:
        with tarfile.open(archive, mode="r:") as opened:
            for member in opened:
                if not member.isreg() or member.name not in FILES:
                    raise AdapterCommandError(f"what came holds {member.name!r}, which is no file of an adapter")
                source = opened.extractfile(member)
                assert source is not None  # (it is a file)
                with source, (to / member.name).open("xb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
                size += member.size
    except tarfile.TarError as error:
        raise AdapterCommandError(f"what came is no archive: {error}") from error
    return size
