"""Where the door between the two processes stands: a socket in a folder that no other user can enter."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq

from opsin_server.errors import ConfigError

SOCKET = "engine"


def bind_privately(socket: zmq.Socket[Any]) -> tuple[Path, str]:
    """The folder, which the caller removes, and the socket's address. A temporary directory that takes no socket (its
    path is too long for one or no UTF-8, it cannot be written, its file system has none) is passed over for the next.
    Raises ConfigError when all are."""
    tried = []
    for place in places():
        try:
            folder = Path(tempfile.mkdtemp(prefix="opsin-", dir=place))  # mode 0700
        except OSError as error:
            tried.append(f"{place}: {error.strerror}")
            continue
        why_not = _bind(socket, folder / SOCKET)
        if why_not is None:
            return folder, address_of(folder)
        shutil.rmtree(folder, ignore_errors=True)
        tried.append(f"{place}: {why_not}")
    raise ConfigError(f"no temporary directory takes a socket (set TMPDIR to one that does): {'; '.join(tried)}")


def address_of(folder: Path) -> str:
    return f"ipc://{folder / SOCKET}"


def _bind(socket: zmq.Socket[Any], path: Path) -> str | None:
    """Why not, in a few words, or None when it is bound."""
    if (length := len(os.fsencode(path))) > zmq.IPC_PATH_MAX_LEN:
        return f"a socket's path there has {length} bytes, {zmq.IPC_PATH_MAX_LEN} are the limit"
    try:
        socket.bind(address_of(path.parent))
    except UnicodeError:
        return "its path is no UTF-8"
    except zmq.ZMQError as error:
        return error.strerror
    return None


def places() -> Sequence[str]:
    """The temporary directory as everybody finds it, then short ones that systems have."""
    found = [os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm"]  # noqa: S108
    with suppress(FileNotFoundError):  # none can be written
        found.insert(0, tempfile.gettempdir())
    return [place for place in dict.fromkeys(found) if place]
