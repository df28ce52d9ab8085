"""What goes in and out at /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from pydantic import Field

from opsin_server.api.schemas.chat_request import DeploymentRequest
from opsin_server.chat.fields import WHOLE, Ignored, Strict

MAX_TOKENS = 100_000
SEPARATORS = MAX_TOKENS + 1000  # commas and brackets: of so many tokens, and of what stands beside them

Parse = Annotated[
    bool | None, Field(description="true: strings of special tokens in the text become these tokens (llama.cpp)")
]
Opening = Annotated[bool | None, Field(description="false: without what the tokenizer itself puts in front, as BOS")]
Strings = Annotated[bool | None, Field(description="true: with `token_strs`, as the vocabulary writes them")]


class TokenizeTextRequest(Strict):
    """Without a model: the served one."""

    model: str = ""
    prompt: str
    add_special_tokens: Opening = None
    parse_special: Parse = None
    return_token_strs: Strings = None


class TokenizeChatRequest(DeploymentRequest):
    """A chat request, of which nothing is answered. Without a model: the served one."""

    return_token_strs: Strings = None

    def _check_last_turn(self) -> None:
        """Without the head of an answer, a conversation may end with any message."""
        if self.continue_final_message or self.add_generation_prompt is not False:
            super()._check_last_turn()


class DetokenizeRequest(Strict):
    """Without a model: the served one."""

    model: str = ""
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31), WHOLE]], Field(max_length=MAX_TOKENS)]
    request_id: Ignored = None


class Tokenized(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct):
    prompt: str
