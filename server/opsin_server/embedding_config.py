"""How a model that answers makes embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from opsin_server.option import Option

PoolingKind = Literal["auto", "last", "mean", "cls"]


class EmbeddingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pooling: Annotated[
        PoolingKind,
        Option(
            "Which of a prompt's states are its embedding. auto: as modules.json in the checkpoint says, else the last."
        ),
    ] = "auto"
    matryoshka: Annotated[
        bool, Option("Embeddings may be cut short (dimensions): the model was trained so, though it does not say it.")
    ] = False
