"""The directory that is written: it appears whole, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opsin_server.errors import ConfigError
from opsin_server.signals import signals_raise

RESERVE = 64 * 2**20  # beside the weights: tokenizer, configurations, headers


def check_out(out: Path) -> None:
    """Before anything is read: a second run must not mix its shards with those of a first."""
    try:
        os.fsencode(out).decode("utf-8")
    except UnicodeDecodeError:  # the safetensors library could not read what was written
        raise ConfigError(f"{out} is not UTF-8: give a directory with another name") from None
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: give a new directory")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give a new directory")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is not a directory: make it first")


def check_room(out: Path, nbytes: int) -> None:
    needed, free = nbytes + RESERVE, shutil.disk_usage(out.parent).free
    if free < needed:
        raise ConfigError(f"{out} needs {needed / 2**30:.2f} GiB of disk; {free / 2**30:.2f} GiB are free")


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside `out`, in the same file system, which becomes `out` at the end. Whatever ends the work before,
    SIGTERM and the end of a terminal included, removes it."""
    folder = out.parent / f".{out.name}.{secrets.token_hex(4)}"
    with signals_raise():
        try:
            folder.mkdir()
            yield folder
            folder.rename(out)  # (onto an empty directory too)
        except OSError as error:
            raise ConfigError(f"{out} cannot be written: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
