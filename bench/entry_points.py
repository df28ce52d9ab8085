"""Where Opsin runs from its tree and is not installed, families are found by entry points all the same.

python bench/entry_points.py DIRECTORY      writes what an installer would, into a directory on PYTHONPATH
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write(directory: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = directory / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in points.items()), ""]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")


if __name__ == "__main__":
    try:
        distribution("opsin")
    except PackageNotFoundError:
        write(Path(sys.argv[1]))
