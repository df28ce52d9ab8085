"""What makes a file outlive a loss of power."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last, after a rename into it or out of it."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(file: Path) -> None:
    """Makes what was written to a file last."""
    _sync(file, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    place = os.open(path, flags)
    try:
        os.fsync(place)
    finally:
        os.close(place)
