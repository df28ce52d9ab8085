"""The language model's tokenizer with a token for pictures, and a chat template that writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tokenizers import AddedToken

from opsin_plugins.spec import Architecture, ModelFiles, ModelSpec, SpecError
from opsin_server.text.encode_prompt import PromptEncoder
from opsin_server.text.load_tokenizer import add_configured, named_tokens, read_tokenizer

PLACEHOLDER = "<image>"

# Stands in front of a language model's own template, which then sees strings alone: the texts of a turn joined, its
# pictures before them, as LLaVA was trained. A turn of text alone renders as it did.
PICTURES_FIRST = """\
{%- set composed = namespace(turns=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string or not message['content'] -%}
{%- set composed.turns = composed.turns + [message] -%}
{%- else -%}
{%- set turn = namespace(pictures='', words='') -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{%- set turn.pictures = turn.pictures ~ '<image>\\n' -%}
{%- elif part['type'] == 'text' -%}{%- set turn.words = turn.words ~ part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- set composed.turns = composed.turns + [dict(message, content=turn.pictures ~ turn.words)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = composed.turns %}
"""


@dataclass(frozen=True)
class Words:
    """tokenizer: the text of tokenizer.json. added: whether the placeholder is new."""

    tokenizer: str
    config: Mapping[str, object]
    placeholder: int
    added: bool


def with_placeholder(files: ModelFiles) -> Words:
    """The library itself gives the id, after the tokens that tokenizer_config.json adds: as every reader of the
    directory will count them."""
    read = read_tokenizer(files.directory)
    names = {**read.names, **named_tokens(files.directory, files.tokenizer_config)}
    add_configured(read.backend, names.values(), files.tokenizer_config)
    added = read.backend.token_to_id(PLACEHOLDER) is None
    known = read.backend.get_added_tokens_decoder()
    if PLACEHOLDER not in {token.content for token in known.values()}:  # also for a plain entry of the vocabulary
        read.backend.add_special_tokens([AddedToken(PLACEHOLDER, special=True, normalized=False)])
    placeholder = read.backend.token_to_id(PLACEHOLDER)
    assert placeholder is not None
    config = {**names, **files.tokenizer_config, "processor_class": "LlavaProcessor"}
    config.pop("chat_template", None)  # it has a file of its own
    if isinstance(decoder := config.get("added_tokens_decoder"), Mapping):
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        token = {"content": PLACEHOLDER, **flags, "special": True}
        config["added_tokens_decoder"] = {str(placeholder): token, **decoder}
    if isinstance(extra := config.get("extra_special_tokens", {}), Mapping):
        config["extra_special_tokens"] = {**extra, "image_token": PLACEHOLDER}
    return Words(read.backend.to_str(pretty=True), config, placeholder, added)


def picture_template(files: ModelFiles, architecture: Architecture, spec: ModelSpec) -> tuple[str, str]:
    """The first of these that writes a placeholder for a picture, and what it is: the language model's own template;
    that one behind PICTURES_FIRST; the family's, for a language model that has none.

    files: with the tokenizer that `with_placeholder` made in its directory.
    """
    own = files.chat_template
    if own is None:
        tries = {"LLaVA's, since the language model has none": architecture.chat_template(files) or ""}
    else:
        derived = "the language model's own, pictures put first in a turn"
        tries = {"the language model's own": own, derived: PICTURES_FIRST + own}
    for what, template in tries.items():
        if PromptEncoder(replace(files, chat_template=template), architecture, spec).takes_images:
            return template, what
    raise SpecError(f"the chat template of the language model leaves out what stands before a text: {PLACEHOLDER}")
