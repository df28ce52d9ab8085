"""What a command ends with."""

from __future__ import annotations


class MigrateError(Exception):
    """The message is one sentence for who typed the command."""


class RefusedError(MigrateError):
    """The source refuses this one request, and would again."""


class GoneError(RefusedError):
    """The source says that there is no such thing, or that this account may not have it."""


class LimitError(MigrateError):
    """The source sends more than was asked to be kept."""
