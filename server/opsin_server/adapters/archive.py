"""An uploaded archive, of which only an adapter's own files are written out; its links, paths and sizes are never
trusted. zip and tar (plain, gzip, bzip2 or xz) are taken."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from errno import EINVAL
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from opsin_server.adapters.adapter_files import PICKLES, READ
from opsin_server.adapters.problems import BadAdapter

MAX_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 8 * 2**20  # of a zip's list of members
MAX_READ = 16 * 2**20  # in one go: what a tar says of its headers' sizes is memory
CHUNK = 2**20
TAKEN = "zip, and tar with gzip, bzip2, xz or none of them, are taken"
END_OF_ZIP = b"PK\x05\x06"
# What the readers raise for archives that are cut, changed, packed in an unknown way or locked by a password.
UNREADABLE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    ValueError,
)  # fmt: skip
END_BYTES = 22 + 2**16  # its record, and the longest comment


@dataclass(frozen=True)
class _Member:
    """path: as it stands in the archive. kind: of what is neither a file nor a folder, "" of those."""

    path: str
    kind: str
    is_file: bool
    open: IO[bytes] | None = None


def unpack(archive: Path, to: Path, limit: int) -> None:
    """Writes the files of an adapter into the directory `to`. limit: bytes of all that is unpacked. Raises BadAdapter
    for what is no archive, or one that would write elsewhere, holds links, or is too large unpacked."""
    try:
        with archive.open("rb") as opened:
            members = _of_zip(opened) if zipfile.is_zipfile(opened) else _of_tar(opened, limit)
            _write(members, to, limit)
    except BadAdapter:
        raise
    except UNREADABLE as error:
        raise BadAdapter(f"the archive cannot be read: {error} ({TAKEN})") from error
    except OSError as error:
        if error.errno not in (None, EINVAL):  # of the disk; offsets that cannot be are the archive's
            raise
        raise BadAdapter(f"the archive cannot be read: {error} ({TAKEN})") from error


def _write(members: Iterator[_Member], to: Path, limit: int) -> None:
    """The files at the archive's top; else those of its one folder. What lies deeper is passed over."""
    folders: dict[str, set[str]] = {}  # the names in each
    left, deeper = limit, ""
    for number, member in enumerate(members):
        if number >= MAX_MEMBERS:
            raise BadAdapter(f"the archive has more than {MAX_MEMBERS:,} members")
        path = PurePosixPath(member.path)
        if member.kind:
            raise BadAdapter(f"the archive holds {member.kind} ({path.name!r}), which is not taken")
        if path.is_absolute() or ".." in path.parts or "\\" in member.path or "\0" in member.path:
            raise BadAdapter(f"the archive names {member.path[:80]!r}, which is no path below its own folder")
        if not member.is_file or path.name not in (*READ, *PICKLES):
            continue
        if len(path.parts) > 2:
            deeper = deeper or str(path.parent)
            continue
        folder = folders.setdefault(str(path.parent), set())
        if path.name in folder:
            raise BadAdapter(f"the archive has more than one {path.name}")
        place = to / str(list(folders).index(str(path.parent)))
        place.mkdir(exist_ok=True)
        folder.add(path.name)
        if path.name in PICKLES:
            (place / path.name).touch()  # (that it is there may be a reason to refuse; it is not read)
            continue
        assert member.open is not None
        left -= _copy(member.open, place / path.name, left, limit)
    _choose(list(folders), to, deeper)


def _choose(folders: list[str], to: Path, deeper: str) -> None:
    """Leaves the files of the top, or of the one folder, in `to` itself."""
    if "." not in folders and len(folders) > 1:
        raise BadAdapter(f"the archive's files are in {len(folders)} folders: an adapter has one")
    if not folders and deeper:
        raise BadAdapter(f"the archive's files lie too deep, in {deeper[:80]}: pack that folder")
    for number, folder in enumerate(folders):
        place = to / str(number)
        if folder == "." or len(folders) == 1:
            for file in place.iterdir():
                file.rename(to / file.name)
        shutil.rmtree(place)


def _copy(source: IO[bytes], to: Path, left: int, limit: int) -> int:
    done = 0
    with to.open("xb") as file:
        while data := source.read(CHUNK):
            done += len(data)
            if done > left:
                raise BadAdapter(f"the archive holds more than {limit:,} bytes unpacked")
            file.write(data)
    return done


def _of_zip(opened: BinaryIO) -> Iterator[_Member]:
    _check_directory(opened)
    with zipfile.ZipFile(opened) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            kind = "a link" if stat.S_ISLNK(mode) else ""
            if info.is_dir() or PurePosixPath(info.filename).name not in (*READ, *PICKLES) or kind:
                yield _Member(info.filename, kind, is_file=False)
                continue
            with archive.open(info) as member:
                yield _Member(info.filename, kind, is_file=True, open=member)


def _check_directory(opened: BinaryIO) -> None:
    """zipfile reads the whole list into memory: whether it is small is known before, from the record at the end."""
    size = opened.seek(0, 2)
    opened.seek(max(0, size - END_BYTES))
    tail = opened.read(END_BYTES)
    at = tail.rfind(END_OF_ZIP)
    if at < 0 or len(tail) < at + 22:
        raise BadAdapter("the archive cannot be read: its end is missing")
    count, length = struct.unpack_from("<HI", tail, at + 10)
    if count >= MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
        raise BadAdapter(f"the archive has more than {MAX_MEMBERS:,} members")
    opened.seek(0)


class _Bounded:
    """A stream that a tar is read from. What is skipped counts too: it must be unpacked to be passed over."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._left, self._limit = stream, limit, limit
        self.last = b""

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= MAX_READ:
            raise BadAdapter(f"the archive has a header of {count:,} bytes")
        self.last = data = self._stream.read(count)
        self._left -= len(data)
        if self._left < 0:
            raise BadAdapter(f"the archive holds more than {self._limit:,} bytes unpacked")
        return data

    def tell(self) -> int:
        return self._limit - self._left

    def seek(self, at: int) -> int:
        """Forward only."""
        while (missing := at - self.tell()) > 0 and self.read(min(missing, CHUNK)):
            pass
        return self.tell()


def _of_tar(opened: BinaryIO, limit: int) -> Iterator[_Member]:
    opened.seek(0)
    overhead = 2 * 512 * MAX_MEMBERS + MAX_READ
    with _decompressed(opened) as stream:
        bounded = _Bounded(stream, limit + overhead)
        with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]
            for info in archive:
                if info.isdir():
                    yield _Member(info.name, "", is_file=False)
                elif not info.isreg() or info.issparse():
                    kind = "a link" if info.issym() or info.islnk() else "no ordinary file"
                    yield _Member(info.name, kind, is_file=False)
                else:
                    yield _Member(info.name, "", is_file=True, open=archive.extractfile(info))
        if not bounded.last or bounded.last.strip(b"\0"):  # tarfile takes one that is cut between two members
            raise BadAdapter("the archive cannot be read: its end is missing")


def _decompressed(opened: BinaryIO) -> AbstractContextManager[IO[bytes]]:
    start = opened.read(6)
    opened.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return nullcontext(gzip.GzipFile(fileobj=opened))  # type: ignore[arg-type]
    if start.startswith(b"BZh"):
        return bz2.BZ2File(opened)
    if start.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(opened)
    return nullcontext(opened)
