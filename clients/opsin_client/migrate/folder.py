"""The directory of a snapshot: where things lie in it, written so that what is there is complete.

DIR/source.json                        whose it is
DIR/jobs/JOB/job.json                  the job as the source described it
            /events.jsonl, checkpoints.jsonl, answers.jsonl, metrics.csv
DIR/files/FILE/file.json, content      the file's description, and its bytes
DIR/pictures/SHA256.png                what lay behind the URLs of rows
DIR/pictures/by_url/SHA256.json        which URL became which picture, or why none came
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from opsin_client.migrate.problems import LimitError, MigrateError

FORMAT = 1
MARKER = "source.json"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")  # of a job or file: what may become a part of a path
PARTS = ".*.part"  # what files are called until they are complete
KEPT_FREE = 2**28  # bytes that the disk must still have after each write


class SnapshotFolder:
    """most: bytes of everything in it. Files appear under their names when they are complete; what is there is never
    written again, so that a snapshot that was interrupted goes on."""

    def __init__(self, path: Path, most: int) -> None:
        self.path, self._most = path, most
        self._size = sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) if path.is_dir() else 0

    def check_free(self, source: str) -> None:
        """Raises MigrateError where the directory is something else's."""
        marker = self.path / MARKER
        if marker.is_file():
            said = self.read_json(marker)
            if said.get("source") != source:
                raise MigrateError(f"{self.path} holds a snapshot of {said.get('source')}: name another directory")
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise MigrateError(f"{self.path} is there and holds no snapshot: name a new directory")

    def claim(self, source: str) -> None:
        """Makes the directory, or takes it up again; it is its owner's alone. Call `check_free` first."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in self.path.rglob(PARTS):  # of a process that was killed
            part.unlink()
        marker = self.path / MARKER
        if not marker.is_file():
            self.write_json(marker, {"format": FORMAT, "source": source})

    def check(self) -> None:
        """Raises MigrateError for what is no snapshot that this program can read."""
        marker = self.path / MARKER
        if not marker.is_file():
            raise MigrateError(f"{self.path} holds no snapshot (opsin migrate snapshot --out {self.path} makes one)")
        if self.read_json(marker).get("format") != FORMAT:
            raise MigrateError(f"{self.path} was made by another version of this program")

    # --------------------------------------------------------------------------------------------------- places

    def job(self, job_id: str) -> Path:
        return self.path / "jobs" / checked_id(job_id)

    def file(self, file_id: str) -> Path:
        return self.path / "files" / checked_id(file_id)

    def content(self, file_id: str) -> Path:
        return self.file(file_id) / "content"

    def saved_content(self, file_id: object) -> Path | None:
        """None for what is no id, and a file that could not be had."""
        path = self.content(file_id) if isinstance(file_id, str) and ID.fullmatch(file_id) else None
        return path if path is not None and path.is_file() else None

    def answers(self, job_id: str) -> list[dict[str, Any]]:
        """Of a job's old model. Raises MigrateError for a file that somebody has changed."""
        path = self.job(job_id) / "answers.jsonl"
        found = self.lines(path)
        if not all(isinstance(one.get("line"), int) and isinstance(one.get("file"), str) for one in found):
            raise MigrateError(_damaged(path))
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """The oldest first."""
        found = [self.read_json(path) for path in (self.path / "jobs").glob("*/job.json")]
        return sorted(found, key=lambda job: (str(job.get("created_at")), str(job.get("id"))))

    # ------------------------------------------------------------------------------------------------- pictures

    def picture(self, url: str) -> dict[str, Any] | None:
        """{"url", "file"} or {"url", "why_not"}; None where nobody has asked for it yet."""
        path = self._picture_note(url)
        return self.read_json(path) if path.is_file() else None

    def add_picture(self, url: str, data: bytes, kind: str) -> None:
        name = f"{hashlib.sha256(data).hexdigest()}.{kind}"
        if not (self.path / "pictures" / name).exists():
            self.write(self.path / "pictures" / name, [data])
        self.write_json(self._picture_note(url), {"url": url, "file": name})

    def note_no_picture(self, url: str, why: str) -> None:
        self.write_json(self._picture_note(url), {"url": url, "why_not": why})

    def picture_path(self, name: str) -> Path:
        return self.path / "pictures" / name

    def _picture_note(self, url: str) -> Path:
        return self.path / "pictures" / "by_url" / f"{hashlib.sha256(url.encode()).hexdigest()}.json"

    # --------------------------------------------------------------------------------------------------- writing

    def write(self, path: Path, chunks: Iterable[bytes], limit: int | None = None) -> int:
        """limit: bytes of this file. Returns how many there are. Raises LimitError, and then nothing is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(PARTS.replace("*", path.name))
        size = 0
        try:
            with part.open("wb") as file:
                for chunk in chunks:
                    size += len(chunk)
                    self._check(size, limit)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            before = path.stat().st_size if path.exists() else 0
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._size += size - before
        return size

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        self.write(path, [json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"])

    def write_lines(self, path: Path, values: Iterable[Mapping[str, Any]]) -> int:
        return self.write(path, (json.dumps(value, sort_keys=True).encode() + b"\n" for value in values))

    def append_line(self, path: Path, value: Mapping[str, Any]) -> None:
        """To a file that grows, which `lines` reads whole lines of."""
        line = json.dumps(value, sort_keys=True).encode() + b"\n"
        self._check(len(line), None)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(line)
        self._size += len(line)

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """What was appended whole; a line that was cut short by the end of a process is taken away. Raises MigrateError
        for a file that somebody has changed."""
        if not path.is_file():
            return []
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with path.open("rb+") as file:
                file.truncate(whole)
        return [_object(line, path) for line in data[:whole].split(b"\n")[:-1]]

    def read_json(self, path: Path) -> dict[str, Any]:
        """Raises MigrateError for a file that somebody has changed."""
        return _object(path.read_bytes(), path)

    def chunks(self, path: Path, size: int = 2**20) -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(size):
                yield chunk

    def _check(self, new: int, limit: int | None) -> None:
        if limit is not None and new > limit:
            raise LimitError(f"it has more than {limit:,} bytes (--max-file)")
        if self._size + new > self._most:
            raise MigrateError(f"the snapshot has more than {self._most:,} bytes (--max-total)")
        if new > 2**20 and shutil.disk_usage(self.path).free < KEPT_FREE:
            raise MigrateError(f"the disk with {self.path} is full")


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise MigrateError(_damaged(path))
    return value


def _damaged(path: Path) -> str:
    if path.name == MARKER:  # without it the directory would be something else's
        return f'{path} is damaged: it must hold {{"format": {FORMAT}, "source": "URL"}}, the URL being --from'
    return f"{path} is damaged: delete it, and take the snapshot again"


def checked_id(text: object) -> str:
    """Raises MigrateError for what is no id of a job or a file, whatever it would mean as a path."""
    if not isinstance(text, str) or not ID.fullmatch(text):
        raise MigrateError(f"the source names something {str(text)[:60]!a}, which is no id")
    return text
