"""Where the bytes of blobs lie: objects of an S3 bucket, by their digest. Keys, region and endpoint come from where
AWS' own tools look for them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ~/.aws, the machine's role)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from opsin_server.errors import ConfigError
from opsin_server.storage.blob_files import DIGEST, OWNER, OWNER_BYTES, Stored, checked

BLOCK = 8 * 2**20
CHUNK = 2**20
CONNECT_SECONDS = 10
READ_SECONDS = 60


def open_s3(url: str) -> S3Files:
    """Raises ConfigError for a URL, a missing driver, or a bucket that does not answer."""
    parsed = urlsplit(url)
    if parsed.scheme != "s3" or not parsed.netloc or parsed.query or parsed.fragment or "@" in parsed.netloc:
        raise ConfigError("--blobs takes s3://BUCKET/PREFIX: without it files lie in the data directory")
    try:
        import fsspec

        patience = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        filesystem = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=patience)
    except ImportError:
        raise ConfigError("--blobs s3://... needs a driver: pip install 'opsin[s3]'") from None
    try:
        with _only_os_errors():
            filesystem.call_s3("head_bucket", Bucket=parsed.netloc)
    except FileNotFoundError:
        raise ConfigError(f"--blobs {url}: there is no bucket {parsed.netloc}") from None
    except OSError as error:
        raise ConfigError(f"--blobs {url} cannot be used: {error}") from error
    return S3Files(filesystem, f"{parsed.netloc}{parsed.path.rstrip('/')}")


class S3Files:
    """bucket/prefix/ab/abcd..."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs, self._root = filesystem, root

    def place(self, file: Path, digest: str) -> None:
        """The store checks what comes by the checksum that the client sends along."""
        size = file.stat().st_size
        with _only_os_errors():
            self._fs.put_file(str(file), self._key(digest))
        if (found := self.size(digest)) != size:
            raise OSError(f"{self._key(digest)} has {found} bytes after {size} were sent")
        file.unlink()

    def open(self, digest: str) -> BinaryIO:
        with _only_os_errors():
            return io.BufferedReader(_Reading(self._fs.open(self._key(digest), "rb", block_size=BLOCK)), CHUNK)

    def size(self, digest: str) -> int | None:
        found = self._info(digest)
        return None if found is None else int(found["size"])

    def modified(self, digest: str) -> float | None:
        found = self._info(digest)
        return None if found is None else found["LastModified"].timestamp()

    def delete(self, digest: str) -> None:
        with _only_os_errors():
            self._fs.rm_file(self._key(digest))

    def listing(self) -> Iterator[Stored]:
        with _only_os_errors():
            found = self._fs.find(self._root, detail=True)
        for key, info in found.items():
            name = key.rpartition("/")[2]
            if DIGEST.fullmatch(name) and key == self._key(name):
                yield Stored(name, info["LastModified"].timestamp())

    def owner(self) -> str | None:
        try:
            with _only_os_errors():
                return self._fs.cat_file(f"{self._root}/{OWNER}", end=OWNER_BYTES).decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return None

    def claim(self, owner: str) -> None:
        with _only_os_errors():
            self._fs.pipe_file(f"{self._root}/{OWNER}", f"{owner}\n".encode())

    def _key(self, digest: str) -> str:
        return f"{self._root}/{checked(digest)[:2]}/{digest}"

    def _info(self, digest: str) -> dict[str, Any] | None:
        try:
            with _only_os_errors():
                return self._fs.info(self._key(digest))
        except FileNotFoundError:
            return None


class _Reading(io.RawIOBase):
    """An object that is being read."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _only_os_errors():
            data = self._opened.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._opened.close()
        super().close()


@contextmanager
def _only_os_errors() -> Iterator[None]:
    """What the driver's own driver raises (no credentials, no such host) is no OSError."""
    import botocore.exceptions

    try:
        yield
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise OSError(str(error)) from error
