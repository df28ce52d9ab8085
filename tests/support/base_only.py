"""What stands for the adapters of a server that has none, where no storage is opened for it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from opsin_server.adapters.catalogue import AdapterCatalogue
from opsin_server.errors import BadRequest


class BaseOnly:
    """names: the model's."""

    def __init__(self, names: Sequence[str]) -> None:
        self.catalogue = AdapterCatalogue(None, "default", names)  # type: ignore[arg-type]

    async def resolve(self, name: str) -> None:
        assert self.catalogue.find(name) is None

    def why_not_ready(self) -> None:
        return None

    def __getattr__(self, name: str) -> object:
        """Whatever would change adapters."""
        return refuse


class Refusing:
    """What stands for files and jobs where no storage is opened for them."""

    scratch, max_bytes = Path(tempfile.gettempdir()), 2**20

    def __getattr__(self, name: str) -> object:
        return refuse


async def refuse(*given: object, **named: object) -> None:
    raise BadRequest("nothing is kept here")
