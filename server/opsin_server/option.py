"""What a configuration's field says of itself as an option of the command line and of a configuration file."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Meta


class OptionFields(NamedTuple):
    """name: its flag without the dashes; None: the field's own name. metavar "SIZE": bytes, which may be written 4GiB.
    commas: the flag takes one text with commas, where others of several values are repeated."""

    name: str | None
    metavar: str | None
    commas: bool


def Option(help: str, *, name: str | None = None, metavar: str | None = None, commas: bool = False) -> Meta:  # noqa: A002, N802
    return Meta(description=help, extra={"option": OptionFields(name, metavar, commas)})
