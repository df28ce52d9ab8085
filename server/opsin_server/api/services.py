"""What the routes share: made once (`api.assemble`), found through the application's state."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from opsin_plugins.spec import U8, Clip
from opsin_server.api.adapter_service import AdapterService
from opsin_server.api.admission import Admission
from opsin_server.api.answer_store import AnswerStore
from opsin_server.api.batch_service import BatchService
from opsin_server.api.engine_status import Engine, facts
from opsin_server.api.file_service import FileService
from opsin_server.api.fine_tuning_service import FineTuningService
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.sampling_defaults import SamplingDefaults
from opsin_server.api.webhook_service import WebhookService
from opsin_server.config import ServerConfig
from opsin_server.errors import BadRequest
from opsin_server.guided.check_process import GrammarChecker
from opsin_server.media.load_images import WORKERS
from opsin_server.media.video_process import VideoDecoder
from opsin_server.metrics import Metrics
from opsin_server.text.conversation import Message
from opsin_server.text.embedding_input import Embedder
from opsin_server.text.encode_prompt import Prompt, PromptEncoder
from opsin_server.text.prompt_options import PLAIN, PromptOptions


def _background_threads() -> ThreadPoolExecutor:
    """On a quarter of the cores: what batches prepare must leave room for what chats do."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4), thread_name_prefix="opsin-batch")


@dataclass(frozen=True, kw_only=True)
class Services:
    config: ServerConfig
    engine: Engine
    chat_encoder: PromptEncoder | None  # None: the model makes embeddings alone
    embedder: Embedder
    names: tuple[str, ...]  # what the model is called, the canonical name first
    version: str  # the model's fingerprint
    sampling: SamplingDefaults
    digest: Callable[[], str | None]  # the model's content digest, once it is known
    adapters: AdapterService
    files: FileService
    fine_tuning: FineTuningService
    batches: BatchService
    webhooks: WebhookService
    answers: AnswerStore | None  # None: none are kept
    admission: Admission
    metrics: Metrics
    threads: ThreadPoolExecutor
    image_threads: ThreadPoolExecutor = WORKERS
    background_threads: ThreadPoolExecutor = field(default_factory=_background_threads)  # of batches: for both
    grammars: GrammarChecker = field(default_factory=GrammarChecker)
    videos: VideoDecoder = field(default_factory=VideoDecoder)
    created: int = field(default_factory=lambda: int(time.time()))  # Unix seconds

    @property
    def encoder(self) -> PromptEncoder:
        """Raises BadRequest where the model answers no conversation."""
        if self.chat_encoder is None:
            raise BadRequest(
                f"The model '{self.names[0]}' makes embeddings (POST /v1/embeddings) and answers no conversations",
                param="model",
                code="unsupported_model",
            )
        return self.chat_encoder

    async def encode(
        self,
        messages: Sequence[Message],
        visuals: Sequence[U8 | Clip],
        continue_final: bool,
        options: PromptOptions = PLAIN,
    ) -> Prompt:
        """In a thread: tokenizing and resizing take milliseconds, and release the interpreter's lock."""
        loop, encode = asyncio.get_running_loop(), self.encoder.encode
        return await loop.run_in_executor(self.threads, encode, messages, visuals, continue_final, options)

    def open(self) -> None:
        """What goes on without an engine; adapters, jobs and batches are opened when that is ready."""
        self.files.open()
        self.webhooks.open()
        if self.answers is not None:
            self.answers.open()

    async def close(self) -> None:
        """What uses others goes before them; one that fails to close keeps none from it."""
        async with AsyncExitStack() as closing:  # (the last one that is named goes first)
            for threads in (self.threads, self.background_threads):
                closing.callback(threads.shutdown, wait=False, cancel_futures=True)
            closing.push_async_callback(self.grammars.close)
            closing.push_async_callback(self.adapters.close)
            if self.answers is not None:
                closing.push_async_callback(self.answers.close)
            for service in (self.webhooks, self.files, self.fine_tuning, self.batches):
                closing.push_async_callback(service.close)

    def check_open(self) -> None:
        """Raises Unavailable while no new work is taken."""
        self.admission.check()
        facts(self.engine)


async def services_of(request: Request) -> Services:
    return request.app.state.services


async def request_log_of(request: Request) -> RequestLog:
    return request.scope["opsin.request"]


ServicesDep = Annotated[Services, Depends(services_of)]
RequestLogDep = Annotated[RequestLog, Depends(request_log_of)]
