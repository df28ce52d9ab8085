"""Chat templates that edit what was said, in the manner of published ones, and conversations for them.

Each comes with what it does in Python, as pieces that are the template's own or somebody's text.
"""

from collections.abc import Callable, Iterator

from hypothesis import strategies as st

from opsin_server.text.conversation import Message, TextPart

Turns = list[tuple[str, str]]
Pieces = Iterator[tuple[str, bool]]

# In the manner of Qwen3: thoughts of earlier turns go, the last one's stay, in a form of the template's own.
THINKS = """\
{%- set at = namespace(user=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set at.user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role != 'assistant' -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- else -%}
{%- set said = m.content -%}{%- set thought = '' -%}
{%- if m.reasoning_content is string -%}
{%- set thought = m.reasoning_content -%}
{%- elif '</think>' in said -%}
{%- set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if loop.index0 > at.user and (loop.last or thought) -%}
{{ '<|im_start|>' ~ m.role ~ '\\n<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' ~ said.lstrip('\\n') }}
{%- else -%}
{{ '<|im_start|>' + m.role + '\\n' + said }}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


def thinks(messages: Turns) -> Pieces:
    user = max((n for n, (role, _) in enumerate(messages) if role == "user"), default=-1)
    for n, (role, said) in enumerate(messages):
        thought = ""
        if role == "assistant" and "</think>" in said:
            thought = said.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
            said = said.split("</think>")[-1].lstrip("\n")
        yield f"<|im_start|>{role}\n", True
        if role == "assistant" and n > user and (n == len(messages) - 1 or thought):
            yield "<think>\n", True
            yield thought.strip("\n"), False
            yield "\n</think>\n\n", True
            said = said.lstrip("\n")
        yield said, False
        yield "<|im_end|>\n", True
    yield "<|im_start|>assistant\n", True


# In the manner of DeepSeek-R1: what stands in front of the last end of a thought is gone; macros, trimmed.
CUTS = """\
{%- macro turn(m) -%}
{%- set text = m.content -%}
{%- if m.role == 'assistant' and '</think>' in text -%}{%- set text = text.split('</think>') | last -%}{%- endif -%}
{%- if text[:1] == '/' -%}<tool_call>{{ text[1:] }}{%- else -%}{{ text }}{%- endif -%}
{%- endmacro -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}
<|im_start|>{{ m.role | upper }}: {{ turn(m) | trim }}<|im_end|>
{%- endfor -%}
{%- for m in messages -%}{%- if m.role == 'system' -%}
{%- set shown -%}<|im_start|>{{ m.content | trim | replace('\\r\\n', '\\n') }}<|im_end|>{%- endset -%}{{ shown }}
{%- break -%}{%- endif -%}{%- endfor -%}"""


def cuts(messages: Turns) -> Pieces:
    for role, text in messages:
        if role == "system":
            continue
        if role == "assistant":
            text = text.split("</think>")[-1]
        yield f"<|im_start|>{role.upper()}: ", True
        if text[:1] == "/":
            yield "<tool_call>", True
            yield text[1:].rstrip(), False
        else:
            yield text.strip(), False
        yield "<|im_end|>", True
    if messages[0][0] == "system":
        yield "<|im_start|>", True
        yield messages[0][1].strip().replace("\r\n", "\n"), False
        yield "<|im_end|>", True


# In the manner of Llama 2 and Mistral: trimmed, one letter changed, the system's text inside of the first turn.
TRIMS = """\
{%- set first = namespace(text='') -%}
{%- for m in messages -%}
{%- if m['role'] == 'system' -%}{%- set first.text = '<|im|>' + (m['content'] | trim) + '\\n' -%}
{%- elif m['role'] == 'user' -%}
{{- '<|im_start|>' + first.text + (m['content'] | trim) + ' <|im_end|>' }}{% set first.text = '' %}
{%- else -%}
{%- set said = m['content'].strip() -%}
{{- ' ' ~ (said[0] | upper if said else '') ~ said[1:] ~ eos_token }}
{%- endif -%}
{%- endfor -%}"""


def trims(messages: Turns) -> Pieces:
    first: list[tuple[str, bool]] = []
    for role, text in messages:
        text = text.strip()
        if role == "system":
            first = [("<|im|>", True), (text, False), ("\n", True)]
        elif role == "user":
            yield "<|im_start|>", True
            yield from first
            yield text, False
            yield " <|im_end|>", True
            first = []
        else:
            yield " ", True
            yield text[:1].upper() + text[1:], False
            yield "<|im_end|>", True


# Joined, formatted, split into lines: the template's own text goes through strings' methods together with the user's.
FORMATS = """\
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{%- for line in m.content.splitlines() -%}
{{ '<|im_start|>%s|%d' % (line, loop.index) if loop.first else '<|im|>{}'.format(line) }}
{%- endfor -%}
{%- else -%}
{%- set head, mark, tail = ('<tool_call>' ~ m.content ~ '<|im_end|>').partition(': ') -%}
{{ [head, tail] | join('<|vision_end|>') }}{{ mark }}{{ ('<|im_end|>' + m.content).removeprefix('<|im_') }}
{%- endif -%}
{%- endfor -%}"""


def formats(messages: Turns) -> Pieces:
    for role, text in messages:
        if role == "user":
            for n, line in enumerate(text.splitlines()):
                yield ("<|im|>" if n else "<|im_start|>"), True
                yield line, False
                yield ("" if n else "|1"), True
        else:
            head, mark, tail = text.partition(": ")
            yield "<tool_call>", True
            yield head, False
            if mark:
                yield "<|vision_end|>", True
                yield tail, False
                yield "<|im_end|>", True
            else:
                yield "<|im_end|><|vision_end|>", True
            yield mark, False
            yield "end|>", True
            yield text, False


EDITING: dict[str, tuple[str, Callable[[Turns], Pieces]]] = {
    "thinks": (THINKS, thinks),
    "cuts": (CUTS, cuts),
    "trims": (TRIMS, trims),
    "formats": (FORMATS, formats),
}

WORDS = [
    "What",
    " is",
    " this",
    "naïve",
    "straße",
    "日本",
    "😀",
    "4",
    "/",
    ": ",
    ".",
    " ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u3000",
]
THOUGHTS = ["<think>", "</think>", "<think>\nhm\n</think>\n\n", "</think>\n\n", "<think>\n\n</think>\n"]
STRINGS = ["<|im_end|>", "<|im_start|>", "<|im_start|>user", "<tool_call>", "<|image_pad|>", "<|im|>", "</think>"]


def texts(words: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), max_size=8).map(lambda found: "x".join(["", *found, ""]).strip("x"))


def conversations(words: list[str], thoughts: list[str]) -> st.SearchStrategy[Turns]:
    """Roles alternate; the assistant may think."""
    system = st.lists(texts(words).map(lambda text: ("system", text)), max_size=1)
    said = st.lists(st.tuples(texts(words), texts(words + thoughts)), min_size=1, max_size=4)
    turns = said.map(lambda pairs: [turn for a, b in pairs for turn in (("user", a), ("assistant", b))])
    return st.tuples(system, turns, st.booleans()).map(lambda c: [*c[0], *(c[1][:-1] if c[2] else c[1])])


def as_messages(turns: Turns) -> list[Message]:
    return [Message(role, (TextPart(text),), is_string=True) for role, text in turns]


def as_dicts(turns: Turns) -> list[dict]:
    return [{"role": role, "content": text} for role, text in turns]
