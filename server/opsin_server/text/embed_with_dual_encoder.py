"""Texts and pictures embedded by a dual encoder: one or the other at a time."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from opsin_plugins.loading.declared_pooling import declared_cuts
from opsin_plugins.loading.open_served import OpenDualEncoder
from opsin_plugins.spec import I32, U8, Clip, SpecError, VisualItem
from opsin_server.embedding_config import EmbeddingConfig
from opsin_server.errors import BadRequest
from opsin_server.ipc.messages import Pooling
from opsin_server.text.conversation import ImagePart, Message, TextPart, VideoPart
from opsin_server.text.embedding_input import (
    ConversationInput,
    EmbeddingFacts,
    EmbeddingInput,
    EmbeddingPrompt,
    TextInput,
    TokenInput,
    Truncation,
    check_length,
    cut_to,
    shortened,
    text_ids,
)
from opsin_server.text.encode_prompt import Prompt
from opsin_server.text.tokenizer import Tokenizer

PUNCTUATION = str.maketrans("", "", string.punctuation)


class DualEncoderEmbedder:
    """Raises SpecError for a model whose texts cannot be prepared."""

    def __init__(self, opened: OpenDualEncoder, config: EmbeddingConfig) -> None:
        self._family, self._spec = opened.family, opened.spec
        settings, text = opened.files.tokenizer_config, opened.spec.text
        self.tokenizer = Tokenizer(opened.files.directory, settings)
        named = self.tokenizer.token_id(self.tokenizer.names.get("pad_token"))
        self._pad = text.pad if named is None else named
        self._pads_left = settings.get("padding_side") == "left"
        self._clean = _cleaner(settings)
        if text.fills and not 0 <= self._pad < text.vocab:
            raise SpecError(
                f"the padding token {self._pad} is outside of the {text.vocab} embeddings of the text tower"
            )
        if config.pooling != "auto":
            raise SpecError(f"--pooling {config.pooling}: a dual encoder pools as it was trained; leave it out")
        cuts = None if config.matryoshka else declared_cuts(opened.files.config, opened.spec.dimensions)
        self.facts = EmbeddingFacts(opened.spec.dimensions, Pooling(), cuts, ("text", "image"))

    def check(self, what: EmbeddingInput) -> None:
        if isinstance(what, ConversationInput):
            part = _only_part(what.messages, what.param)
            if isinstance(part, ImagePart) and part.demanded:
                raise BadRequest(
                    f"max_pixels: {self._spec.family} resizes every image by its own rule", param=part.param
                )

    def encode(
        self, what: EmbeddingInput, visuals: Sequence[U8 | Clip], context: int, truncation: Truncation
    ) -> EmbeddingPrompt:
        if isinstance(what, ConversationInput):
            part = _only_part(what.messages, what.param)
            if isinstance(part, ImagePart):
                assert not isinstance(visuals[0], Clip)
                return self._picture(visuals[0], part)
            what = TextInput(part.text, what.param)
        return self._text(what, context, truncation)

    def _picture(self, image: U8, part: ImagePart) -> EmbeddingPrompt:
        try:
            item = self._family.preprocess(image, self._spec)
        except SpecError as error:
            raise BadRequest(str(error), param=part.param) from error
        return EmbeddingPrompt(_prompt([], item), item.tokens, item.tokens)

    def _text(self, what: TextInput | TokenInput, context: int, truncation: Truncation) -> EmbeddingPrompt:
        if isinstance(what, TextInput):
            cleaned = replace(what, text=self._clean(what.text))
            ids = text_ids(self.tokenizer, cleaned, context, truncation)
        else:
            ids = list(what.ids)
            if truncation.tokens is not None:
                ids = shortened(ids, cut_to(truncation, context, what.param), truncation)
        count, vocab = len(ids), self._spec.text.vocab
        check_length(count, context, what.param)
        if not count:
            raise BadRequest("this text has no tokens", param=what.param)
        if max(ids) >= vocab:
            raise BadRequest(f"there is no token {max(ids)}; this model's are 0 to {vocab - 1}", param=what.param)
        if self._spec.text.fills:
            padding = [self._pad] * (context - count)
            ids = [*padding, *ids] if self._pads_left else [*ids, *padding]
        return EmbeddingPrompt(_prompt(ids), count)


def _cleaner(settings: Mapping[str, object]) -> Callable[[str], str]:
    """What the tokenizer's class does to a text before it is tokenized, where its tokenizer.json may not say it."""
    kind, lowers = settings.get("tokenizer_class"), settings.get("do_lower_case")
    if kind in ("SiglipTokenizer", "SiglipTokenizerFast"):
        return lambda text: _without_punctuation(text if lowers is False else text.lower())
    return str.lower if lowers is True or kind == "Siglip2Tokenizer" else str


def _without_punctuation(text: str) -> str:
    """Source: big_vision, whose models were trained so."""
    return " ".join(text.translate(PUNCTUATION).split())


def _only_part(messages: Sequence[Message], param: str) -> TextPart | ImagePart:
    parts = [part for message in messages for part in message.parts]
    if len(parts) != 1:
        raise BadRequest(
            f"This model embeds one text or one picture at a time, and the conversation has {len(parts)} parts: give "
            "each an input of its own",
            param=param,
        )
    part = parts[0]
    if isinstance(part, VideoPart):
        raise BadRequest(
            "this model takes no videos: it embeds texts and pictures", param=part.param, code="unsupported_video"
        )
    if isinstance(part, TextPart) and not part.text:
        raise BadRequest("it must not be an empty string", param=param)
    return part


def _prompt(ids: Sequence[int], item: VisualItem | None = None) -> Prompt:
    positions: I32 = np.arange(len(ids), dtype=np.int32)[None]
    return Prompt(np.asarray(ids, np.int32), positions, 0, (), () if item is None else (item,))
