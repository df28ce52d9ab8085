"""A prompt encoder whose tokens are bytes, over a real tokenizer file: id 65 is "A", and 256 ends a turn."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from opsin_plugins.spec import Span, VisualItem
from opsin_server.errors import BadRequest
from opsin_server.ipc.messages import Pooling
from opsin_server.text.conversation import ImagePart, Message
from opsin_server.text.embedding_input import EmbeddingFacts, EmbeddingInput, EmbeddingPrompt
from opsin_server.text.encode_prompt import Prompt
from opsin_server.text.token_bytes import BYTE_OF
from opsin_server.text.tokenizer import Tokenizer

END = 256
IMAGE_TOKENS = 4


@cache
def byte_tokenizer() -> Tokenizer:
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": END, "content": "<|end|>", "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": BYTE_OF, "merges": []},
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(document))
        return Tokenizer(Path(folder))


class FakeEncoder:
    """free: encoding waits until it is set. An image becomes 4 tokens, and its pixels one row."""

    def __init__(self) -> None:
        self.tokenizer = byte_tokenizer()
        self.free = threading.Event()
        self.free.set()
        self.vocabulary = END + 1
        self.reasoning = None
        self.ends: tuple[int, ...] = (END,)
        self.takes_images, self.takes_videos = True, False
        self.calls = 0
        self.continued = False

    def check(self, messages: Sequence[Message]) -> None:
        pass

    def thinks_already(self, prompt: Prompt) -> bool:
        return False

    def encode(
        self, messages: Sequence[Message], images: Sequence[Any], continue_final: bool = False, options: Any = None
    ) -> Prompt:
        self.calls += 1
        self.continued = continue_final
        self.free.wait()
        ids: list[int] = []
        spans: list[Span] = []
        for part in (part for message in messages for part in message.parts):
            if isinstance(part, ImagePart):
                spans.append(Span(len(ids), IMAGE_TOKENS, len(spans)))
                ids += [0] * IMAGE_TOKENS
            elif "CRASH" in part.text:
                raise RuntimeError(f"a bug met {part.text}")
            elif "REFUSE" in part.text:
                raise BadRequest("the template refuses this", param="messages")
            else:
                ids += part.text.encode()
        return self._prompt(ids, spans, images)

    def of_ids(self, ids: Sequence[int], param: str) -> Prompt:
        return self._prompt(list(ids), [], ())

    def _prompt(self, ids: list[int], spans: list[Span], images: Sequence[Any]) -> Prompt:
        items = tuple(VisualItem(i.reshape(1, -1), (1, 1, 1), IMAGE_TOKENS, bytes(32)) for i in images)
        array = np.array(ids, np.int32)
        return Prompt(array, np.arange(len(ids), dtype=np.int32)[None], 0, tuple(spans), items)


class FakeEmbedder:
    """Of a model that is asked for no embeddings."""

    facts = EmbeddingFacts(8, Pooling(), frozenset(), ("text", "image"))

    def check(self, what: EmbeddingInput) -> None:
        raise BadRequest("no embeddings here")

    def encode(self, *given: Any) -> EmbeddingPrompt:
        raise BadRequest("no embeddings here")
