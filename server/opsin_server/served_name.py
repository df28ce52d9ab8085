"""Names of the file system, which are bytes, as text that can be sent, logged and printed."""

from __future__ import annotations

import re
from pathlib import Path

# What no encoding has a place for, less those that stand for bytes which were no UTF-8 (PEP 383).
LONE_SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
HUB_CACHE = re.compile("models--(.+)")  # .../models--Qwen--Qwen2-VL-2B-Instruct/snapshots/<commit>
GGUF = re.compile(r"(-\d{5}-of-\d{5})?\.gguf$")  # one of several, too
NAMELESS = "model"  # in the root of a file system


def readable(text: str) -> str:
    r"""A path or an argument as valid Unicode, whatever the locale made of it: UTF-8 where it is that, and \xff for a
    byte that is not."""
    text = LONE_SURROGATES.sub(lambda found: ascii(found[0])[1:-1], text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def model_name(directory: Path) -> str:
    """What a model is called when nobody named it: in a Hub cache the repository, elsewhere the folder (or the GGUF),
    and a link to one as the link is called."""
    if directory.name in ("", ".."):  # "/", "." and those that end so
        directory = directory.resolve()
    snapshots = directory.absolute().parent
    repository = HUB_CACHE.fullmatch(snapshots.parent.name) if snapshots.name == "snapshots" else None
    name = repository[1].replace("--", "/") if repository else GGUF.sub("", directory.name)
    return readable(name) or NAMELESS
