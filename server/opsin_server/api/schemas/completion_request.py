"""The body of POST /v1/completions: prompts that are texts or ids as they stand, to be continued."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from opsin_server.api.schemas.deployments import NamedByAddress
from opsin_server.api.schemas.dialects import CommonDialects
from opsin_server.api.schemas.sampling_fields import MAX_CHOICES, SamplingFields
from opsin_server.api.schemas.tokenize import Opening, Parse
from opsin_server.chat.fields import WHOLE, Ignored, only, unsupported, whole, wrong

MAX_PROMPTS = 128  # and answers to them
DEFAULT_TOKENS = 16  # OpenAI's

_KINDS = "it must be a string, a list of strings, token ids, or a list of lists of token ids"


def _listed(value: Any) -> Any:
    """Each of the four forms as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise wrong(f"{_KINDS}, and not empty")
    if isinstance(value[0], str):
        odd = next((index for index, one in enumerate(value) if not isinstance(one, str)), None)
        if odd is not None:
            raise wrong("it must be a string, as the first prompt is", odd)
        return value
    if not isinstance(value[0], list):
        return [_ids(value, None)]
    return [_ids(one, index) for index, one in enumerate(value)]


def _ids(value: Any, index: int | None) -> list[int]:
    """index: of the prompt among several."""
    ids = [whole(i) for i in value] if isinstance(value, list) else None
    if ids is None or not all(map(_is_id, ids)):
        raise wrong(_KINDS if index is None else "it must be a list of token ids", index)
    return ids


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


Id = Annotated[int, Field(ge=0, lt=2**31)]
AsSent = str | Annotated[list[str] | list[Id] | list[list[Id]], Field(min_length=1)]
Prompts = Annotated[
    list[str] | list[list[int]],
    BeforeValidator(_listed, json_schema_input_type=AsSent),
    Field(description="or one string, or the token ids of one; each is answered for itself"),
]


class CompletionRequest(CommonDialects, SamplingFields):
    model: Annotated[str, Field(min_length=1)]
    prompt: Prompts

    # These act.
    max_tokens: Annotated[
        Annotated[int, Field(ge=0, lt=2**31), WHOLE] | None,
        Field(description=f"{DEFAULT_TOKENS} where it is left out; 0 with `echo` or `prompt_logprobs` only"),
    ] = None
    logprobs: Annotated[
        Annotated[int, Field(ge=0, le=5), WHOLE] | None, Field(description="of each token, and of so many others")
    ] = None
    echo: Annotated[bool | None, Field(description="the answer's text begins with the prompt")] = None
    best_of: Annotated[
        Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None, Field(description="1 or what `n` is")
    ] = None
    add_special_tokens: Opening = None
    parse_special: Parse = None

    # These cannot change an answer.
    user: Ignored = None
    metadata: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None

    # These would change the answer, and pass only where they would not.
    suffix: Annotated[None, only("")] = None
    prompt_embeds: Annotated[None, only()] = None
    media_io_kwargs: Annotated[None, only({})] = None
    truncate_prompt_tokens: Annotated[None, only()] = None
    allowed_token_ids: Annotated[None, only()] = None
    service_tier: Annotated[None, only("auto", "default")] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> CompletionRequest:
        answers = self.n or 1
        if len(self.prompt) * answers > MAX_PROMPTS:
            given = f"{len(self.prompt)} prompts with {answers} answers each"
            raise wrong(f"{given} are more than {MAX_PROMPTS} answers", "prompt")
        if self.best_of not in (None, 1, answers):
            raise unsupported(self.best_of, "'best_of' must be 1, what 'n' is, or left out", "best_of")
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise wrong("may be 0 with 'echo' or 'prompt_logprobs' only", "max_tokens")
        if self.stream and self.echo and self.logprobs is not None:
            raise unsupported(True, "'echo' with 'logprobs' goes without 'stream'", "stream")
        if (self.min_tokens or 0) > self.output_limit:
            raise wrong(f"{self.min_tokens} are more than the answer may have, {self.output_limit}", "min_tokens")
        return self

    @property
    def output_limit(self) -> int:
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def asks_of_prompt(self) -> int:
        """As `prompt_logprobs` of a Submit."""
        echoed = self.logprobs if self.echo else None
        return max(-1 if asked is None else asked for asked in (echoed, self.prompt_logprobs))


class DeploymentCompletionRequest(CompletionRequest):
    """Azure's way to ask: the address names the model, and the body may name it or not."""

    model: NamedByAddress = ""
