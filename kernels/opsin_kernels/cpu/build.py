"""The C sources of this folder as a shared library for this processor: as the wheel brings it, or made when it is first
needed."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_NAMES = ("linear.c", "decode.c", "rows.c", "sampling.c", "token_list.c", "layer.c", "pool.c")
_HEADERS = ("vectors.h", "pool.h", "linear.h", "decode.h", "rows.h", "sampling.h", "token_list.h")
SOURCES = tuple(Path(__file__).with_name(name) for name in _NAMES)
READ = (*SOURCES, *(Path(__file__).with_name(name) for name in _HEADERS))
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-Wno-psabi")
# By what torch says that the processor has.
LEVELS: Mapping[str, Sequence[str]] = {
    "AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "AVX2": ("-march=x86-64-v3",),
    "DEFAULT": (),
}
SECONDS = 240.0
SCRATCH = ".build-"


log = logging.getLogger("opsin.kernels")


class NoCompilerError(Exception):
    """Why there is no library; a sentence."""


def levels() -> tuple[str, ...]:
    """Those that a wheel of this machine brings."""
    return tuple(LEVELS) if platform.machine() in ("x86_64", "AMD64") else ("DEFAULT",)


def library_name(level: str) -> str:
    """Of this very source: another one's library is not taken for it."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in READ)).hexdigest()[:12]
    return f"kernels-{digest}-{platform.machine()}-{level.lower()}.so"


def compiler() -> str:
    """Raises NoCompilerError."""
    asked = os.environ.get("CC") or str(sysconfig.get_config_var("CC") or "").partition(" ")[0]
    for name in (asked, "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)) is not None:
            return found
    raise NoCompilerError("there is no C compiler")


def build(level: str, folder: Path, *, anew: bool = False) -> Path:
    """The library in a folder. Whoever else makes it at the same time makes the same. anew: also where there is one.
    Raises NoCompilerError."""
    target = folder / library_name(level)
    if target.is_file() and not anew:
        return target
    program = compiler()
    log.warning("compiling the C kernels for this processor, once, into %s: half a minute at most", folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _forget_killed(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
            made = Path(scratch) / target.name
            command = [program, *FLAGS, *LEVELS[level], "-o", str(made), *map(str, SOURCES), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)  # noqa: S603
            if done.returncode:
                raise NoCompilerError(f"{program} failed: {(done.stderr.splitlines() or ['no reason given'])[0]}")
            with made.open("rb") as opened:
                os.fsync(opened.fileno())  # a name that outlives a power cut has its content
            made.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompilerError(f"{folder}: {error}") from error
    return target


def _forget_killed(folder: Path) -> None:
    """What builds that were killed have left."""
    for left in folder.glob(f"{SCRATCH}*"):
        if time.time() - left.stat().st_mtime > 2 * SECONDS:
            shutil.rmtree(left, ignore_errors=True)
