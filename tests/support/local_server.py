"""The API's application in front of the real engine, in this process: a whole server for the price of its model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai

from opsin_plugins.loading.content_digest import fingerprint
from opsin_plugins.loading.open_served import OpenDualEncoder, open_served
from opsin_server import __version__
from opsin_server.api.app import create_app
from opsin_server.api.sampling_defaults import read_sampling_defaults
from opsin_server.api.vocabulary import vocabulary_of
from opsin_server.config import EngineConfig, ServerConfig
from opsin_server.embedding_config import EmbeddingConfig
from opsin_server.engine.startup.load import load_engine
from opsin_server.ipc.messages import Arrays, Stats, Submit, Vocabulary, choice_ids
from opsin_server.ipc.stream import Stream
from opsin_server.text.embed_with_decoder import DecoderEmbedder
from opsin_server.text.embed_with_dual_encoder import DualEncoderEmbedder
from opsin_server.text.encode_prompt import PromptEncoder
from support.fake_services import fake_services

MODEL = "tiny"
Result = TypeVar("Result")


class LocalEngine:
    """Steps in the event loop of whoever submits. submitted: every message, for tests that look at them."""

    state, failure, restarts = "ready", None, 0

    def __init__(self, config: EngineConfig) -> None:
        loaded = load_engine(config, lambda done, total: None)
        self._engine, self.ready = loaded.engine, loaded.ready
        self._streams: dict[str, Stream] = {}
        self.submitted: list[Submit] = []

    @property
    def stats(self) -> Stats:
        return self._engine.stats()

    def engines(self) -> dict[str, LocalEngine]:
        return {"0": self}

    @property
    def heard(self) -> float:
        return time.monotonic()

    def teach(self, vocabulary: Vocabulary, tokens: list[bytes]) -> None:
        self._engine.grammars.learn(tokens, vocabulary.special, vocabulary.ends)

    def submit_choices(self, message: Submit, arrays: Arrays) -> list[Stream]:
        self._engine.submit(message, arrays)
        self.submitted.append(message)
        streams = [Stream(name, self._engine.cancel) for name in choice_ids(message.request_id, message.choices)]
        self._streams |= {stream.request_id: stream for stream in streams}
        asyncio.get_running_loop().call_soon(self._step)
        return streams

    def _step(self) -> None:
        for output in self._engine.step():
            self._streams[output.request_id].push(output)
        loop = asyncio.get_running_loop()
        if self._engine.busy:
            loop.call_soon(self._step)
        elif getattr(self._engine, "sequences", None):  # they wait for a grammar
            loop.call_later(0.001, self._step)


class LocalServer:
    """A directory, served with defaults but for a small context; a dual encoder has its own."""

    def __init__(
        self,
        directory: Path,
        options: Mapping[str, str] | None = None,
        context: int = 512,
        mmproj: Path | None = None,
        embeddings: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008
    ) -> None:
        flags = tuple(f"{name}={value}" for name, value in (options or {}).items())
        tower = None if mmproj is None else str(mmproj)
        model = open_served(directory, options=options, mmproj=mmproj)
        self.files, self.spec = model.files, model.spec
        pair = isinstance(model, OpenDualEncoder)
        engine = EngineConfig(
            str(directory),
            mmproj=tower,
            max_context=None if pair else context,
            max_sequences=4,
            model_options=flags,
        )
        encoder = None
        if isinstance(model, OpenDualEncoder):
            self.embedder = DualEncoderEmbedder(model, embeddings)
        else:
            encoder = self.encoder = PromptEncoder(model.files, model.architecture, model.spec)
            self.embedder = DecoderEmbedder(model.files, encoder, embeddings)
        self.sampling = read_sampling_defaults(self.files.generation)
        self.engine = LocalEngine(engine)
        if encoder is not None and (vocabulary := vocabulary_of(encoder)) is not None:
            self.engine.teach(*vocabulary)
        services = fake_services(
            ServerConfig(engine),
            self.engine,
            encoder,
            self.embedder,
            (MODEL,),
            version=fingerprint(model.files, __version__),
            sampling=self.sampling,
        )
        self._app = create_app(services)

    def ask(self, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """A chat completion's JSON; anything but 200 is an AssertionError with the answer."""
        answer = self.post("/v1/chat/completions", {"model": MODEL, "messages": messages, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        async def send() -> httpx.Response:
            async with self._client() as client:
                answer = await client.post(path, json=body)
            await self._app.state.services.grammars.close()
            return answer

        return asyncio.run(send())

    def with_sdk(self, use: Callable[[openai.AsyncOpenAI], Awaitable[Result]]) -> Result:
        """What the real SDK gets of it."""

        async def run() -> Result:
            async with self._client() as client:
                sdk = openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=client, max_retries=0)
                return await use(sdk)

        return asyncio.run(run())

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://test", timeout=60)
