"""Chat templates of the repositories here, written for these tests with what the published ones do: default system
messages, dates, refusals, pictures first, blanks trimmed, turns that must alternate."""

# Qwen2-VL and Qwen2.5-VL: a system message where there is none, pictures where they stand, numbered if asked.
QWEN2_VL = """\
{%- set seen = namespace(pictures=0, videos=0) -%}
{%- for turn in messages -%}
{%- if loop.first and turn['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + turn['role'] + '\\n' }}
{%- if turn['content'] is string -%}{{ turn['content'] }}
{%- else -%}
{%- for piece in turn['content'] -%}
{%- if piece['type'] == 'image' or 'image' in piece or 'image_url' in piece -%}
{%- set seen.pictures = seen.pictures + 1 -%}
{%- if add_vision_id %}{{ 'Picture ' ~ seen.pictures ~ ': ' }}{% endif -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif piece['type'] == 'video' or 'video' in piece -%}
{%- set seen.videos = seen.videos + 1 -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in piece -%}{{ piece['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""

# Qwen3-VL: no system message of its own, roles one by one, tools and their answers.
QWEN3_VL = """\
{%- macro shown(content, counts) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for piece in content -%}
{%- if counts and (piece.type == 'image' or 'image' in piece or 'image_url' in piece) -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif counts and (piece.type == 'video' or 'video' in piece) -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in piece -%}{{ piece.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
{{ '<|im_start|>system\\n' }}{{ tools | tojson }}{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- for turn in messages -%}
{%- if turn.role == 'user' or (turn.role == 'system' and loop.first) -%}
{{ '<|im_start|>' + turn.role + '\\n' + shown(turn.content, true) + '<|im_end|>\\n' }}
{%- elif turn.role == 'assistant' -%}
{{ '<|im_start|>assistant\\n' + shown(turn.content, false) }}
{%- for call in turn.tool_calls or [] %}{{ '<tool_call>' + (call | tojson) + '</tool_call>' }}{% endfor -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""

# Llama 3.2 Vision: the day in a system message, which pictures forbid; texts trimmed.
LLAMA_VISION = """\
{{- bos_token }}
{%- if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% else %}{% set today = '1 Jan 2025' %}
{%- endif %}
{%- set told = '' %}
{%- if messages[0]['role'] == 'system' %}
{%- set told = messages[0]['content'] | trim %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- set seen = namespace(pictures=false) %}
{%- for turn in messages %}
{%- for piece in turn['content'] %}
{%- if piece['type'] == 'image' %}{% set seen.pictures = true %}{% endif %}
{%- endfor %}
{%- endfor %}
{%- if seen.pictures and told != '' %}{{ raise_exception('No system message beside pictures, please.') }}{% endif %}
{%- if not seen.pictures %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday is ' + today + '\\n\\n' + told + '<|eot_id|>' }}
{%- endif %}
{%- for turn in messages %}
{{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' }}
{%- if turn['content'] is string %}
{{- turn['content'] | trim }}
{%- else %}
{%- for piece in turn['content'] %}
{%- if piece['type'] == 'image' %}{{- '<|image|>' }}
{%- elif piece['type'] == 'text' %}{{- piece['text'] | trim }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

# Pixtral: turns must alternate, the system's text stands in front of the last question.
PIXTRAL = """\
{%- set told = '' %}
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
{%- set told = messages[0]['content'] + '\\n\\n' %}
{%- set turns = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Turns must alternate.') }}{% endif %}
{%- if turn['role'] == 'user' %}
{{- '[INST]' + (told if loop.last else '') }}
{%- if turn['content'] is string %}
{{- turn['content'] }}
{%- else %}
{%- for piece in turn['content'] %}
{%- if piece['type'] == 'text' %}{{- piece['text'] }}
{%- elif piece['type'] == 'image' %}{{- '[IMG]' }}
{%- else %}{{ raise_exception('Text and pictures only.') }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '[/INST]' }}
{%- elif turn['role'] == 'assistant' %}
{{- turn['content'] + eos_token }}
{%- else %}{{ raise_exception('Users and assistants only.') }}
{%- endif %}
{%- endfor %}
"""

# Mistral Small 3.1: a system message of its own with the day in it, in a frame of its own tokens.
MISTRAL_SMALL = """\
{%- set today = strftime_now('%Y-%m-%d') %}
{%- set told = 'You are a helper.\\nThe current date is ' + today + '.' %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- if messages[0]['content'] is string %}{% set told = messages[0]['content'] %}
{%- else %}{% set told = messages[0]['content'][0]['text'] %}
{%- endif %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set turns = messages %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + told + '[/SYSTEM_PROMPT]' }}
{%- for turn in turns %}
{%- if turn['role'] == 'user' %}
{%- if turn['content'] is string %}{{- '[INST]' + turn['content'] + '[/INST]' }}
{%- else %}
{{- '[INST]' }}
{%- for piece in turn['content'] %}
{%- if piece['type'] == 'text' %}{{- piece['text'] }}
{%- elif piece['type'] in ['image', 'image_url'] %}{{- '[IMG]' }}
{%- else %}{{ raise_exception('Text and pictures only.') }}
{%- endif %}
{%- endfor %}
{{- '[/INST]' }}
{%- endif %}
{%- elif turn['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + turn['content'] + '[/SYSTEM_PROMPT]' }}
{%- elif turn['role'] == 'assistant' %}
{%- if turn['content'] is string %}{{- turn['content'] + eos_token }}
{%- else %}{{- turn['content'][0]['text'] + eos_token }}
{%- endif %}
{%- else %}{{ raise_exception('Users, systems and assistants only.') }}
{%- endif %}
{%- endfor %}
"""

# LLaVA 1.5: pictures first, whatever their place; what the assistant said is marked for training.
VICUNA = """\
{% for turn in messages %}
{%- if turn['role'] != 'system' %}{{ turn['role'].upper() + ': ' }}{% endif %}
{%- for piece in turn['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}
{%- for piece in turn['content'] | selectattr('type', 'equalto', 'text') %}
{%- if turn['role'] == 'assistant' %}{% generation %}{{ piece['text'] + ' ' }}{% endgeneration %}
{%- else %}{{ piece['text'] + ' ' }}
{%- endif %}
{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

# LLaVA 1.6 on Mistral: only the first text of system and assistant, an end behind answers written out.
LLAVA_MISTRAL = """\
{% for turn in messages %}
{%- if turn['role'] == 'system' %}{{ '<<SYS>>\\n' + turn['content'][0]['text'] + '\\n<</SYS>>\\n\\n' }}
{%- elif turn['role'] == 'user' %}{{ '[INST] ' }}
{%- for piece in turn['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}
{%- for piece in turn['content'] | selectattr('type', 'equalto', 'text') %}{{ piece['text'] }}{% endfor %}
{{- ' [/INST]' }}
{%- elif turn['role'] == 'assistant' %}{{ ' ' + turn['content'][0]['text'] + '</s> ' }}
{%- else %}{{ raise_exception('Users and assistants only.') }}
{%- endif %}
{%- endfor %}"""

# LLaVA on Qwen2: pictures first, on the line of the role.
INTERLEAVE = """\
{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + ' ' }}
{%- for piece in turn['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}
{%- for piece in turn['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + piece['text'] }}{% endfor %}
{{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"""

# SmolVLM and Idefics3: the first begins with one token, what follows a role depends on its first part.
CAPITALS = """\
OPENING{% for turn in messages %}{{ turn['role'] | capitalize }}
{%- if turn['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}
{%- for piece in turn['content'] %}
{%- if piece['type'] == 'text' %}{{ piece['text'] }}{% elif piece['type'] == 'image' %}{{ '<image>' }}{% endif %}
{%- endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
SMOLVLM, IDEFICS3 = CAPITALS.replace("OPENING", "<|im_start|>"), CAPITALS.replace("OPENING", "<|begin_of_text|>")

# Language models: contents are strings.
LLAMA = """\
{{- bos_token }}
{%- for turn in messages %}
{{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
MISTRAL = """\
{{- bos_token }}
{%- for turn in messages %}
{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Turns must alternate.') }}{% endif %}
{%- if turn['role'] == 'user' %}{{- '[INST] ' + turn['content'] + '[/INST]' }}
{%- else %}{{- ' ' + turn['content'] | trim + eos_token }}
{%- endif %}
{%- endfor %}
"""
CHATML = """\
{%- for turn in messages %}
{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
