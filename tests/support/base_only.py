"""What stands for the adapters of a server that has none, where no storage is opened for it."""

from __future__ import annotations

from collections.abc import Sequence

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

        async def refuse(*given: object, **named: object) -> None:
            raise BadRequest("there are no adapters here")

        return refuse
