"""What a command ends with."""

from __future__ import annotations


class AdapterCommandError(Exception):
    """The message is one sentence for who typed the command: the server's own, where it has refused something."""
