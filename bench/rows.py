"""Rows of results, each a JSON line that is on the disk as soon as it is measured: what came before a kill is there.

A line is one of three: a command that began, a row that began, a row that ended. A row ended with "ok" and its numbers,
or with a "failure" in words. Names of rows are unique over all stages.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 60.0  # that a row may take, unless it says so itself


class Rows:
    """The rows of one stage, appended to a file that other processes append to as well. broken: asked after a failure
    whether the device still works in this process; if not, the process ends, and another one takes up what is left.
    patience: what the seconds of a row are times."""

    def __init__(
        self, path: Path, stage: str, broken: Callable[[], bool] = lambda: False, patience: float = 1.0
    ) -> None:
        self.path, self.stage, self._broken, self._patience = path, stage, broken, patience

    def todo(self, names: Iterable[str]) -> list[str]:
        """Those that have not succeeded yet, and that this command has not tried yet."""
        lines = read(self.path)
        done, tried = succeeded(lines), attempted(lines)
        return [name for name in names if name not in done and name not in tried]

    @contextmanager
    def row(self, name: str, seconds: float = SECONDS) -> Iterator[dict[str, Any]]:
        """Within it a row is measured; its numbers go into the dictionary. What raises becomes the row's failure and
        goes no further. A row that takes longer ends the process, with what every thread was doing on stderr."""
        values: dict[str, Any] = {}
        self._append({"began": name})
        began = time.monotonic()
        faulthandler.dump_traceback_later(seconds * self._patience, exit=True, file=sys.__stderr__)
        try:
            yield values
        except Exception as error:  # the other rows are still wanted
            traceback.print_exc()
            self.failed(name, f"{type(error).__name__}: {first_line(error)}")
            if self._broken():
                sys.exit("the device does not answer any more in this process")
        else:
            self.ended(name, time.monotonic() - began, **values)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def ended(self, name: str, seconds: float, **values: Any) -> None:
        self._append({"row": name, "ok": True, "seconds": seconds, **values})

    def failed(self, name: str, failure: str) -> None:
        self._append({"row": name, "ok": False, "failure": failure})

    def _append(self, line: dict[str, Any]) -> None:
        append(self.path, {"at": time.time(), "stage": self.stage, **line})


def append(path: Path, line: dict[str, Any]) -> None:
    """One write, so that lines of several processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (json.dumps(finite(line), allow_nan=False) + "\n").encode()
    place = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(place, data)
    finally:
        os.close(place)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines; one that a kill has cut off is left out."""
    found = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                print(f"{path}: {line[:80]!r} is cut off", file=sys.stderr)
    return found


def succeeded(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last success of each row."""
    return {line["row"]: line for line in lines if line.get("ok")}


def failures(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last failure of each row that never succeeded."""
    lines = list(lines)
    done = succeeded(lines)
    return {line["row"]: line for line in lines if "failure" in line and line["row"] not in done}


def attempted(lines: list[dict[str, Any]]) -> set[str]:
    """Rows that began or ended since the last command began."""
    return {line.get("row") or line["began"] for line in since_command(lines) if "row" in line or "began" in line}


def unfinished(lines: list[dict[str, Any]]) -> dict[str, str]:
    """Rows that began since the last command began and have not ended, with their stages."""
    found: dict[str, str] = {}
    for line in since_command(lines):
        if "began" in line:
            found[line["began"]] = line["stage"]
        elif "row" in line:
            found.pop(line["row"], None)
    return found


def since_command(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return lines[_last_command(lines) + 1 :]


def before_command(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What earlier commands left."""
    return lines[: max(0, _last_command(lines))]


def _last_command(lines: list[dict[str, Any]]) -> int:
    return max((i for i, line in enumerate(lines) if "command" in line), default=-1)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:500]


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
