"""A GGUF in several files, as llama-gguf-split writes them: the first has the metadata, and each has tensors of its
own. Source: the fields split.no, split.count and split.tensors.count, and the names of the files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from opsin_plugins.loading.gguf.container import MAX_TENSORS, Container, read_container
from opsin_plugins.loading.gguf.metadata import Fields
from opsin_plugins.spec import SpecError

NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def read_whole(path: Path) -> Container:
    """A GGUF; where it is the first of several parts, with the tensors of all, which lie beside it. Raises SpecError
    that names the part which is missing, or is another than it should be."""
    first = read_container(path)
    said = Fields(first).of("split.")
    count = said.integer("count", 0)
    if count <= 1:
        return first
    if (number := said.integer("no")) != 0:
        raise SpecError(f"{path} is part {number + 1} of {count}: give the first, {_named(path, 0, count)}")
    tensors = dict(first.tensors)
    for number in range(1, count):
        part = _read_part(path, number, count)
        if twice := next((name for name in part.tensors if name in tensors), None):
            raise SpecError(f"{twice} is in both {tensors[twice].file.name} and {part.path.name}")
        tensors |= part.tensors
        if len(tensors) > MAX_TENSORS:
            raise SpecError(f"{path}: more than {MAX_TENSORS:,} tensors in {count} parts")
    if (stated := said.integer("tensors.count", len(tensors))) != len(tensors):
        raise SpecError(f"{path}: its {count} parts should have {stated:,} tensors, and have {len(tensors):,}")
    return replace(first, tensors=tensors)


def _read_part(first: Path, number: int, count: int) -> Container:
    file = _named(first, number, count)
    if not file.is_file():
        raise SpecError(f"{first} is part 1 of {count}, and part {number + 1} is not there: {file}")
    part = read_container(file)
    said = Fields(part).of("split.")
    found, of = said.integer("no"), said.integer("count")
    if (found, of) != (number, count):
        raise SpecError(f"{file} says that it is part {found + 1} of {of}, where part {number + 1} of {count} belongs")
    return part


def _named(path: Path, number: int, count: int) -> Path:
    name = NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != count:
        raise SpecError(
            f"{path} is one of {count} parts, found by their names: this should end in -00001-of-{count:05}.gguf"
        )
    return path.with_name(f"{name['stem']}-{number + 1:05}-of-{count:05}.gguf")
