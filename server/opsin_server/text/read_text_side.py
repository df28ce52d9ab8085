"""What a directory needs beside its weights, read to see whether it is there."""

from __future__ import annotations

from pathlib import Path

from opsin_plugins.loading.open_served import OpenDualEncoder, open_served
from opsin_server.config import EngineConfig
from opsin_server.embedding_config import EmbeddingConfig
from opsin_server.text.embed_with_dual_encoder import DualEncoderEmbedder
from opsin_server.text.encode_prompt import read_encoder


def read_text_side(config: EngineConfig) -> None:
    """Raises SpecError where a tokenizer or a chat template cannot be used."""
    opened = open_served(Path(config.model), config.plugins, config.family_options(), config.tower_file())
    if isinstance(opened, OpenDualEncoder):
        DualEncoderEmbedder(opened, EmbeddingConfig())
    else:
        read_encoder(config)
