"""An adapter on its way to a server: a form whose file is an archive, or a directory packed as it is read. Nothing is
held in memory, and only an adapter's own files are sent."""

from __future__ import annotations

import secrets
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from opsin_client.adapters.problems import AdapterCommandError

CONFIG, WEIGHTS, MISTRAL_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "lora.safetensors"
PROJECTOR = "non_lora_trainables.safetensors"
FILES = (CONFIG, WEIGHTS, PROJECTOR, MISTRAL_WEIGHTS, "params.json", "opsin_adapter.json")
PICKLED = {"adapter_model.bin": WEIGHTS, "non_lora_trainables.bin": PROJECTOR}  # and what they must become
CHUNK = 2**20
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class _Part:
    """A file of an archive. header: the tar's, which says the size."""

    path: Path
    size: int
    header: bytes

    @property
    def padding(self) -> bytes:
        return bytes(-self.size % tarfile.BLOCKSIZE)

    @property
    def length(self) -> int:
        return len(self.header) + self.size + len(self.padding)

    def chunks(self) -> Iterator[bytes]:
        yield self.header
        yield from _read(self.path, self.size)
        yield self.padding


class Upload:
    """A form with fields and one file. length: its bytes, all of which `chunks` gives."""

    def __init__(self, path: Path, fields: Mapping[str, str]) -> None:
        """Raises AdapterCommandError for what is no adapter, as far as names of files tell; OSError."""
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._path, self._size = path, path.stat().st_size
        self._parts = _parts(path) if path.is_dir() else None
        if path.name in FILES and self._parts is None:
            raise AdapterCommandError(f"{path} is one file of an adapter: name its directory")
        self._head = b"".join(_field(boundary, name, value) for name, value in fields.items())
        self._head += (
            f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="adapter"\r\n\r\n'.encode()
        )
        self._tail = f"\r\n--{boundary}--\r\n".encode()

    @property
    def length(self) -> int:
        file = self._size if self._parts is None else sum(part.length for part in self._parts) + len(END_OF_TAR)
        return len(self._head) + file + len(self._tail)

    def chunks(self) -> Iterator[bytes]:
        """Raises AdapterCommandError for a file that is shorter than it was."""
        yield self._head
        if self._parts is None:
            yield from _read(self._path, self._size)
        else:
            for part in self._parts:
                yield from part.chunks()
            yield END_OF_TAR
        yield self._tail


def _field(boundary: str, name: str, value: str) -> bytes:
    return f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def _parts(directory: Path) -> list[_Part]:
    _check(directory)
    parts = []
    for name in FILES:
        if (directory / name).is_file():
            info = tarfile.TarInfo(name)
            info.size = (directory / name).stat().st_size
            parts.append(_Part(directory / name, info.size, info.tobuf(tarfile.PAX_FORMAT)))
    return parts


def _check(directory: Path) -> None:
    """What is not sent must not be missed: the server never sees pickles, and cannot say that they were there."""
    names = {path.name for path in directory.iterdir()}
    for pickle, needed in PICKLED.items():
        if pickle in names and needed not in names:
            raise AdapterCommandError(
                f"{directory / pickle} is a pickle, which can run code when it is read: where you trust it, convert it "
                f"to {needed}"
            )
    if names & {WEIGHTS, MISTRAL_WEIGHTS}:
        return
    inner = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
    hint = f" (below it: {', '.join(inner[:4])})" if inner else ""
    raise AdapterCommandError(f"{directory} holds no adapter: neither {WEIGHTS} nor {MISTRAL_WEIGHTS}{hint}")


def _read(path: Path, size: int) -> Iterator[bytes]:
    left = size
    with path.open("rb") as file:
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise AdapterCommandError(f"{path} became shorter while it was sent")
            left -= len(chunk)
            yield chunk
