"""Chat templates that write calls of tools, made for these tests in the forms that published ones have."""

from __future__ import annotations

_CHATML = """\
{%- macro said(turn) -%}
{%- if turn.content is string -%}{{ turn.content }}
{%- else -%}{%- for part in turn.content -%}{{ part.text }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
"""

HERMES = (
    _CHATML
    + """\
{%- if tools -%}
{{ '<|im_start|>system\\n# Tools\\n<tools>' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\nAnswer with <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call><|im_end|>\\n' }}
{%- endif -%}
{%- for turn in messages -%}
{%- if turn.role == 'tool' -%}
{{ '<|im_start|>user\\n<tool_response>\\n' + said(turn) + '\\n</tool_response><|im_end|>\\n' }}
{%- else -%}
{{ '<|im_start|>' + turn.role + '\\n' + said(turn) }}
{%- for call in turn.tool_calls or [] -%}
{%- if not loop.first or said(turn) -%}{{ '\\n' }}{%- endif -%}
{{ '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{%- endif -%}
"""
)

LLAMA = """\
{{- bos_token -}}
{%- for turn in messages -%}
{%- if turn.role == 'user' and loop.first and tools -%}
{{ '<|start|>user<|end|>\\n\\n' }}
{%- for tool in tools -%}{{ tool | tojson(indent=4) + '\\n\\n' }}{%- endfor -%}
{{ turn.content + '<|eot|>' }}
{%- elif turn.tool_calls -%}
{%- if turn.tool_calls | length != 1 -%}{{ raise_exception('one call at a time') }}{%- endif -%}
{%- set call = turn.tool_calls[0].function -%}
{{ '<|start|>assistant<|end|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson }}{{ '}<|eot|>' }}
{%- elif turn.role == 'tool' -%}
{{ '<|start|>ipython<|end|>\\n\\n' + turn.content + '<|eot|>' }}
{%- else -%}
{{ '<|start|>' + turn.role + '<|end|>\\n\\n' + (turn.content | trim) + '<|eot|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant<|end|>\\n\\n' }}{%- endif -%}
"""

_MISTRAL = """\
{{- bos_token -}}
{%- set count = namespace(turns=0) -%}
{%- for turn in messages -%}
{%- if turn.role != 'tool' and not turn.tool_calls -%}
{%- if (turn.role == 'user') != (count.turns % 2 == 0) -%}{{ raise_exception('turns must alternate') }}{%- endif -%}
{%- set count.turns = count.turns + 1 -%}
{%- endif -%}
{%- if turn.role == 'user' -%}
{%- if tools and loop.last -%}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif -%}
{{ '[INST]' + turn.content + '[/INST]' }}
{%- elif turn.tool_calls -%}
CALLS
{%- elif turn.role == 'tool' -%}
{%- if turn.tool_call_id | length != 9 -%}{{ raise_exception('ids have nine characters') }}{%- endif -%}
{{ '[TOOL_RESULTS]' + turn.tool_call_id + '[TOOL_CONTENT]' + turn.content + '[/TOOL_RESULTS]' }}
{%- else -%}
{{ turn.content + eos_token }}
{%- endif -%}
{%- endfor -%}
"""

NEMO = _MISTRAL.replace(
    "CALLS",
    """\
{{ '[TOOL_CALLS][' }}
{%- for call in turn.tool_calls -%}
{%- if call.id | length != 9 -%}{{ raise_exception('ids have nine characters') }}{%- endif -%}
{{ (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{{ ', ' if not loop.last else ']' + eos_token }}
{%- endfor -%}""",
)
SMALL = _MISTRAL.replace(
    "CALLS",
    """\
{%- for call in turn.tool_calls -%}
{%- if call.id | length != 9 -%}{{ raise_exception('ids have nine characters') }}{%- endif -%}
{{ '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' + (call.function.arguments | tojson) }}
{%- endfor -%}
{{ eos_token }}""",
)
DEVSTRAL = _MISTRAL.replace(
    "CALLS",
    """\
{%- for call in turn.tool_calls -%}
{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (call.function.arguments | tojson) }}
{%- endfor -%}
{{ eos_token }}""",
)

PYTHONIC = """\
{%- if tools -%}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif -%}
{%- for turn in messages -%}
{{ '<|im_start|>' + turn.role + '\\n' }}
{%- if turn.tool_calls -%}
{{ '[' }}
{%- for call in turn.tool_calls -%}
{{ call.function.name + '(' }}
{%- for name, value in call.function.arguments.items() -%}
{{ name + '=' + (value | tojson) }}{{ ', ' if not loop.last }}
{%- endfor -%}
{{ ')' }}{{ ', ' if not loop.last }}
{%- endfor -%}
{{ ']' }}
{%- else -%}{{ turn.content }}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

XML = """\
{%- if tools -%}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif -%}
{%- for turn in messages -%}
{{ '<|im_start|>' + turn.role + '\\n' + turn.content }}
{%- for call in turn.tool_calls or [] -%}
{{ '<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for name, value in call.function.arguments.items() -%}
{{ '<parameter=' + name + '>\\n' + (value | string) + '\\n</parameter>\\n' }}
{%- endfor -%}
{{ '</function>\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

NONE = """\
{%- for turn in messages -%}{{ '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

READ = {
    "hermes": HERMES, "llama": LLAMA, "nemo": NEMO, "small": SMALL, "devstral": DEVSTRAL, "pythonic": PYTHONIC,
}  # fmt: skip
