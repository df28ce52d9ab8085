"""What a server is told of adapters."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
from msgspec import Meta

from opsin_server.errors import ConfigError
from opsin_server.option import Option


class AdapterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    adapters: Annotated[
        tuple[str, ...],
        Option("An adapter to serve: a directory as PEFT writes it.", name="adapter", metavar="NAME=PATH"),
    ] = ()
    lora_modules: Annotated[
        tuple[str, ...], Option("The same as --adapter, as vLLM calls it; its JSON form is read as well.")
    ] = ()
    adapter_dir: Annotated[
        str | None,
        Option(
            "Directory of adapters. One that a request names and nobody knows is looked for there, and paths given "
            "over the API must lie in it.",
            metavar="DIR",
        ),
    ] = None
    max_adapter_bytes: Annotated[
        Annotated[int, Meta(ge=1)], Option("Files of one adapter, uploaded or read.", metavar="SIZE")
    ] = 4 * 2**30

    def named(self) -> dict[str, str]:
        """Paths by name, of --adapter and --lora-modules. Raises ConfigError for what is neither form, or a name that
        is given two paths."""
        found: dict[str, str] = {}
        for flag, texts in (("--adapter", self.adapters), ("--lora-modules", self.lora_modules)):
            for text in texts:
                name, path = _pair(flag, text)
                if found.setdefault(name, path) != path:
                    raise ConfigError(f"{flag} {name} is both {found[name]} and {path}")
        return found


def _pair(flag: str, text: str) -> tuple[str, str]:
    if text.lstrip().startswith("{"):
        try:
            said = json.loads(text)
            return str(said["name"]), str(said["path"])
        except (ValueError, LookupError, TypeError):
            raise ConfigError(f'{flag} {text!r}: write NAME=PATH, or {{"name": "NAME", "path": "PATH"}}') from None
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ConfigError(f"{flag} {text!r}: write NAME=PATH")
    return name, path
