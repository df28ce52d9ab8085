"""The parts of the API process, made of a configuration and an opened model, and put together."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from opsin_plugins.loading.content_digest import fingerprint
from opsin_plugins.loading.open_model import OpenModel
from opsin_plugins.loading.open_served import OpenDualEncoder
from opsin_server import __version__
from opsin_server.api.adapter_service import AdapterService
from opsin_server.api.admission import Admission
from opsin_server.api.answer_store import AnswerStore
from opsin_server.api.batch_service import BatchService
from opsin_server.api.file_service import FileService
from opsin_server.api.fine_tuning_service import FineTuningService
from opsin_server.api.model_digest import ModelDigest
from opsin_server.api.sampling_defaults import read_sampling_defaults
from opsin_server.api.services import Services
from opsin_server.api.webhook_service import WebhookService
from opsin_server.config import ServerConfig
from opsin_server.ipc.client import EngineClient
from opsin_server.metrics import Metrics
from opsin_server.served_name import model_name, readable
from opsin_server.storage.state import State
from opsin_server.text.embed_with_decoder import DecoderEmbedder
from opsin_server.text.embed_with_dual_encoder import DualEncoderEmbedder
from opsin_server.text.embedding_input import Embedder
from opsin_server.text.encode_prompt import PromptEncoder

DEFAULT_THREADS = min(8, os.cpu_count() or 1)


def assemble(
    config: ServerConfig, engine: EngineClient, model: OpenModel | OpenDualEncoder, digest: ModelDigest, state: State
) -> Services:
    """The engine may still be loading. Raises ValueError for a tokenizer, a template or a limit that cannot be."""
    names = tuple(map(readable, config.served_names)) or (model_name(model.files.directory),)
    answering, encoder, embedder = _encoders(config, model)
    metrics = Metrics()
    adapters = AdapterService(config.adapters, state, answering, engine, names, metrics.adapters, lambda: digest.value)
    files = FileService(config.files, state, config.media)
    jobs = FineTuningService(config, state, engine, answering, encoder, adapters, names, metrics.jobs, files.read_image)
    return Services(
        config=config,
        engine=engine,
        chat_encoder=encoder,
        embedder=embedder,
        names=names,
        version=fingerprint(model.files, __version__),
        sampling=read_sampling_defaults(model.files.generation if config.generation_config == "auto" else {}),
        digest=lambda: digest.value,
        adapters=adapters,
        files=files,
        fine_tuning=jobs,
        batches=BatchService(config, state, adapters, metrics.batches),
        webhooks=WebhookService(config.webhooks, state, metrics.webhooks),
        answers=AnswerStore(config.answers, state) if config.answers.store else None,
        metrics=metrics,
        admission=Admission(config.max_queue),
        threads=ThreadPoolExecutor(config.preprocess_threads or DEFAULT_THREADS, thread_name_prefix="opsin-prompt"),
    )


def _encoders(
    config: ServerConfig, model: OpenModel | OpenDualEncoder
) -> tuple[OpenModel | None, PromptEncoder | None, Embedder]:
    """The model if it answers, what makes prompts for it then, and what embeds in any case."""
    if isinstance(model, OpenDualEncoder):
        return None, None, DualEncoderEmbedder(model, config.embeddings)
    encoder = PromptEncoder(model.files, model.architecture, model.spec)
    return model, encoder, DecoderEmbedder(model.files, encoder, config.embeddings)
