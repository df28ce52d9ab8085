"""What a command ends with."""

from __future__ import annotations

from collections.abc import Mapping


class MigrateError(Exception):
    """The message is one sentence for who typed the command."""


class LaterError(Exception):
    """The source does not answer for the moment. headers: of what it did answer, which may say when it will."""

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = headers or {}


class RefusedError(MigrateError):
    """The source refuses this one request, and would again."""


class GoneError(RefusedError):
    """The source says that there is no such thing, or that this account may not have it."""


class LimitError(MigrateError):
    """The source sends more than was asked to be kept."""
