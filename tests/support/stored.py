"""What tests of the storage put into it, and how they look at it from outside."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from opsin_server.errors import OpsinError
from opsin_server.storage.backup import TABLES
from opsin_server.storage.records import AdapterVersion, Blob, NewVersion, SourceFile
from opsin_server.storage.state import State

TENANT = "default"


def put(state: State, data: bytes, tenant: str = TENANT, name: str = "a.safetensors") -> Blob:
    return state.blobs.put(tenant, io.BytesIO(data), kind="adapter", name=name, limit=2**24)


def new_version(state: State, data: bytes, tenant: str = TENANT, **facts: object) -> NewVersion:
    """An adapter's version with its two files stored."""
    made, given = put(state, data, tenant), put(state, b"given " + data, tenant)
    source = {"adapter_model.safetensors": SourceFile(given.digest, given.size)}
    return NewVersion(made.digest, made.size, 8, ("q", "v"), "upload", source, "shape", **facts)


def add(state: State, name: str, data: bytes, *, promote: bool = True, tenant: str = TENANT) -> AdapterVersion:
    return state.adapters.add_version(tenant, name, new_version(state, data, tenant), promote=promote)


def rows(state: State) -> dict[str, list[tuple]]:
    """Everything in the database."""
    found = {}
    with state.database.snapshot() as connection:
        for table in TABLES:
            ordered = select(table).order_by(*table.primary_key.columns)
            found[str(table.name)] = [tuple(row) for row in connection.execute(ordered)]
    return found


def outcome(act: Callable[[], object]) -> type | None:
    """The class of what it raises, for a caller."""
    try:
        act()
    except OpsinError as error:
        return type(error)
    return None


def digests(state: State) -> set[str]:
    """Of the files that lie there."""
    return {stored.digest for stored in state.files.listing()}


def python(program: str, *arguments: str | Path, before: tuple[str, ...] = (), **options: object) -> subprocess.Popen:
    """A Python process that runs a program, with lines from its standard output."""
    command = [*before, sys.executable, "-P", "-c", program, *map(str, arguments)]
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )
