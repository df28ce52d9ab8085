"""Texts and conversations embedded by a model that answers: the pooled states of its decoder."""

from __future__ import annotations

from collections.abc import Sequence

from opsin_plugins.loading.declared_pooling import declared_cuts, declared_pooling
from opsin_plugins.spec import U8, Clip, ModelFiles, SpecError
from opsin_server.embedding_config import EmbeddingConfig
from opsin_server.errors import BadRequest
from opsin_server.ipc.messages import Pooling
from opsin_server.text.conversation import texts
from opsin_server.text.embedding_input import (
    FAR_TOO_LONG,
    ConversationInput,
    EmbeddingFacts,
    EmbeddingInput,
    EmbeddingPrompt,
    TextInput,
    Truncation,
    check_length,
    cut_to,
    shortened,
    text_ids,
    too_long,
)
from opsin_server.text.encode_prompt import Prompt, PromptEncoder
from opsin_server.text.prompt_options import PromptOptions


class DecoderEmbedder:
    """Made of any model, and asked of few: what its files declare and is not done here is told when somebody asks."""

    def __init__(self, files: ModelFiles, encoder: PromptEncoder, config: EmbeddingConfig) -> None:
        self._encoder, self._refusal, pooling = encoder, "", Pooling()
        try:
            pooling = _pooling(files, config)
        except SpecError as error:
            self._refusal = f"this checkpoint declares embeddings that are not served here: {error}"
        width = encoder.spec.decoder.width
        cuts = None if config.matryoshka else declared_cuts(files.config, width)
        sees = encoder.takes_images
        self.facts = EmbeddingFacts(width, pooling, cuts, ("text", "image") if sees else ("text",))

    def check(self, what: EmbeddingInput) -> None:
        if self._refusal:
            raise BadRequest(self._refusal)
        if isinstance(what, ConversationInput):
            self._encoder.check(what.messages)

    def encode(
        self, what: EmbeddingInput, visuals: Sequence[U8 | Clip], context: int, truncation: Truncation
    ) -> EmbeddingPrompt:
        prompt = self._prompt(what, visuals, context, truncation)
        check_length(len(prompt.ids), context, what.param)
        return EmbeddingPrompt(prompt, len(prompt.ids), sum(span.length for span in prompt.spans))

    def _prompt(
        self, what: EmbeddingInput, visuals: Sequence[U8 | Clip], context: int, truncation: Truncation
    ) -> Prompt:
        if isinstance(what, ConversationInput):
            # (A conversation that were cut would lose its template's end, or a part of a picture.)
            size, far = sum(map(len, texts(what.messages))), FAR_TOO_LONG * context * self._longest
            if size > far:
                raise too_long(f"{size:,} characters", context, what.param)
            options = PromptOptions(generation_prompt=what.opens)
            return self._encoder.encode(what.messages, visuals, options=options)
        if isinstance(what, TextInput):
            ids = text_ids(self._encoder.tokenizer, what, context, truncation)
        else:
            ids = list(what.ids)
            if truncation.tokens is not None:
                ids = shortened(ids, cut_to(truncation, context, what.param), truncation)
            check_length(len(ids), context, what.param)
        return self._encoder.of_ids(ids, what.param)

    @property
    def _longest(self) -> int:
        return self._encoder.tokenizer.longest_token


def _pooling(files: ModelFiles, config: EmbeddingConfig) -> Pooling:
    """What the operator says goes before what the checkpoint declares. Raises SpecError."""
    if config.pooling != "auto":
        return Pooling(config.pooling)
    found = declared_pooling(files.directory)
    return Pooling() if found is None else Pooling(found.kind, found.normalized)
