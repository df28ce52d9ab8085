"""What the routes share, of servers under test: nothing lasts, and what is not given refuses."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from opsin_server.api.admission import Admission
from opsin_server.api.sampling_defaults import SamplingDefaults
from opsin_server.api.services import Services
from opsin_server.config import ServerConfig
from opsin_server.metrics import Metrics
from support.base_only import BaseOnly, Refusing


def fake_services(
    config: ServerConfig, engine: Any, encoder: Any, embedder: Any, names: Sequence[str], **given: Any
) -> Services:
    """given: parts by their names in Services; those that are None refuse, too."""
    parts: dict[str, Any] = {
        "version": "v1-test",
        "sampling": SamplingDefaults(),
        "digest": lambda: None,
        "adapters": BaseOnly(tuple(names)),
        "metrics": Metrics(),
        "admission": Admission(config.max_queue),
        "threads": ThreadPoolExecutor(config.preprocess_threads or 2, thread_name_prefix="opsin-prompt"),
        "answers": None,
        **{name: Refusing() for name in ("files", "fine_tuning", "batches", "webhooks")},
    }
    parts |= {name: part for name, part in given.items() if part is not None}
    return Services(config=config, engine=engine, chat_encoder=encoder, embedder=embedder, names=tuple(names), **parts)
