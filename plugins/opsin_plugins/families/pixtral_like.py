"""What Pixtral-style models share: pictures of any size, whose rows end with tokens of their own, and the prompts of
Mistral's instruct models. Source of these: the published mistral-common, versions 3 and 7 of its tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence

from opsin_plugins.families.base import Family
from opsin_plugins.families.encoders.pixtral import Pixtral
from opsin_plugins.families.mistral_names import mistral_names
from opsin_plugins.families.positions import rows_with_breaks, write_images
from opsin_plugins.spec import Encode, Expanded, ModelFiles, ModelSpec, PublishedNames, SpecError, VisualItem

ROW_END, IMAGE_END = "[IMG_BREAK]", "[IMG_END]"


class PixtralStyle(Family):
    encoder = Pixtral()

    def expand(self, ids: Sequence[int], items: Sequence[VisualItem], spec: ModelSpec, encode: Encode) -> Expanded:
        assert spec.image is not None
        assert spec.image_token is not None
        token, merge = spec.image_token, spec.image.merge
        ends = [_one_token(encode, text) for text in (ROW_END, IMAGE_END)] if items else [0, 0]
        return write_images(
            ids, items, token, lambda i: rows_with_breaks(i.grid[1] // merge, i.grid[2] // merge, token, *ends)
        )

    def other_names(self, spec: ModelSpec) -> Sequence[PublishedNames]:
        return [mistral_names(spec)]

    def chat_template(self, files: ModelFiles) -> str | None:
        return instruct_template()


def _one_token(encode: Encode, text: str) -> int:
    ids = list(encode(text))
    if len(ids) != 1:
        raise SpecError(f"the tokenizer has no token {text}, which ends a row of an image")
    return ids[0]


def instruct_template(*, framed_system: bool = False, picture_first: bool = False) -> str:
    """[INST] user [/INST] answer </s>, for directories without a template.

    framed_system: system messages have a frame of their own, as of version 7; before, their text opens the last user
    turn. picture_first: of a text and a picture alone, the picture comes first.
    """
    flags = {"framed_system": framed_system, "picture_first": picture_first}
    return "".join(f"{{%- set {name} = {str(value).lower()} -%}}\n" for name, value in flags.items()) + INSTRUCT


INSTRUCT = """\
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set seen = namespace(system='', last_user=-1, role='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' and not framed_system -%}
{%- set seen.system = seen.system + said(message['content']) + '\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{%- set seen.last_user = loop.index0 -%}
{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == seen.role and seen.role != 'system' -%}
{{ raise_exception('Two turns of one role follow each other.') }}
{%- endif -%}
{%- set seen.role = message['role'] -%}
{%- if message['role'] == 'assistant' -%}
{{ said(message['content']).rstrip(' ') }}{{ eos_token }}
{%- elif message['role'] == 'user' -%}
{{ '[INST]' }}
{%- if loop.index0 == seen.last_user -%}{{ seen.system }}{%- endif -%}
{%- set parts = message['content'] -%}
{%- if parts is string -%}{{ parts }}
{%- elif picture_first and parts | map(attribute='type') | list == ['text', 'image'] -%}
{{ '[IMG]' }}{{ parts[0]['text'] }}
{%- else -%}
{%- for part in parts -%}
{%- if part['type'] == 'image' -%}{{ '[IMG]' }}{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '[/INST]' }}
{%- elif framed_system -%}
{{ '[SYSTEM_PROMPT]' }}{{ said(message['content']) }}{{ '[/SYSTEM_PROMPT]' }}
{%- endif -%}
{%- endfor -%}
"""
