"""What tells a model from another of the same name, without reading its weights through."""

from __future__ import annotations

import hashlib
import json

from opsin_plugins.spec import ModelFiles
from opsin_server.served_name import readable


def fingerprint(files: ModelFiles) -> str:
    """Of the configuration, and of every tensor's name, type, shape, and its file's size and time of change."""
    hasher = hashlib.sha256(json.dumps(files.config, sort_keys=True).encode())
    for name, info in sorted(files.tensors.items()):
        hasher.update(f"{name} {info.dtype} {info.shape}\n".encode())
    for file in sorted({info.file for info in files.tensors.values()}):
        stat = file.stat()
        hasher.update(f"{readable(file.name)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"fp_{hasher.hexdigest()[:16]}"
