"""Templates that edit what was said: the text is that of transformers, and what is left of a text stays text.

Each template of `EDITING` comes with what it does in Python, as pieces that are the template's own or somebody's text.
The pieces add up to the text that transformers renders, and the rule of special tokens makes ids of them.
"""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from opsin_plugins.spec import SpecError
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.text.conversation import Message, TextPart
from support.plain_rule import PlainRule

Pieces = Iterator[tuple[str, bool]]
SETTINGS = settings(max_examples=120, deadline=None, derandomize=True)

# In the manner of Qwen3: thoughts of earlier turns go, the last one's stay, in a form of the template's own.
THINKS = """\
{%- set at = namespace(user=-1) -%}
{%- for m in messages if m.role == 'user' -%}{%- endfor -%}
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


def thinks(messages: list[tuple[str, str]]) -> Pieces:
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


def cuts(messages: list[tuple[str, str]]) -> Pieces:
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


def trims(messages: list[tuple[str, str]]) -> Pieces:
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


def formats(messages: list[tuple[str, str]]) -> Pieces:
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


EDITING: dict[str, tuple[str, Callable[[list[tuple[str, str]]], Pieces]]] = {
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


def conversations(words: list[str], thoughts: list[str]) -> st.SearchStrategy[list[tuple[str, str]]]:
    """Roles alternate; the assistant may think."""
    system = st.lists(texts(words).map(lambda text: ("system", text)), max_size=1)
    said = st.lists(st.tuples(texts(words), texts(words + thoughts)), min_size=1, max_size=4)
    turns = said.map(lambda pairs: [turn for a, b in pairs for turn in (("user", a), ("assistant", b))])
    return st.tuples(system, turns, st.booleans()).map(lambda c: [*c[0], *(c[1][:-1] if c[2] else c[1])])


def as_messages(turns: list[tuple[str, str]]) -> list[Message]:
    return [Message(role, (TextPart(text),)) for role, text in turns]


def as_dicts(turns: list[tuple[str, str]]) -> list[dict]:
    return [{"role": role, "content": text} for role, text in turns]


@pytest.mark.parametrize("name", EDITING)
@pytest.mark.parametrize("risky", [False, True], ids=["plain", "with added tokens"])
def test_pieces(name, risky, cases):
    source, pieces_of = EDITING[name]
    case = cases["thinking"].with_template(source)
    oracle, encoder, rule = case.oracle, case.encoder, PlainRule(case)
    seen = set()

    @SETTINGS
    @given(conversations(WORDS + STRINGS if risky else WORDS, THOUGHTS))
    def check(turns):
        pieces = list(pieces_of(turns))
        whole = "".join(piece for piece, _ in pieces)
        rendered = oracle.apply_chat_template(
            as_dicts(turns), tokenize=False, add_generation_prompt=True, chat_template=source
        )
        assert rendered == whole, "the reference of this test"
        assert encoder.template.render(as_messages(turns)) == rendered
        ids = encoder.text_ids(as_messages(turns))
        assert ids == rule.ids_of_pieces(pieces)
        if not any(rule.strings.search(piece) for piece, own in pieces if not own):
            assert ids == rule.usual(rendered)  # nothing typed is left: as transformers encodes it
            seen.add("usual")
        elif ids != rule.usual(rendered):
            seen.add("plain")

    check()
    assert seen == {"usual", "plain"}


def test_a_thought_that_is_sent_back_is_cut(cases):
    """The real case: a client returns an answer as it came, and the template takes the thought out of it."""
    case = cases["thinking"].with_template(THINKS)
    thought = "<think>\n" + "What is in this picture? A red circle. " * 8 + "\n</think>\n\n"
    turns = [("user", "What?"), ("assistant", thought + "A circle."), ("user", "Sure?")]
    ids = case.encoder.text_ids(as_messages(turns))
    bare = [("user", "What?"), ("assistant", "A circle."), ("user", "Sure?")]
    assert ids == case.encoder.text_ids(as_messages(bare))
    assert ids == case.oracle.apply_chat_template(
        as_dicts(turns), tokenize=True, add_generation_prompt=True, return_dict=False, chat_template=THINKS
    )


def test_the_templates_own_marks_are_tokens_and_a_users_are_not(cases):
    case = cases["thinking"].with_template(THINKS)
    encoder, ends = case.encoder, case.encoder.tokenizer.encode("</think>")
    turns = [("user", "is </think> a mark?"), ("assistant", "<think>\nhm\n</think>\n\nyes")]
    ids = encoder.text_ids(as_messages(turns))
    assert ids.count(*ends) == 1  # the last turn's, which the template wrote itself
    shown = b"".join(map(encoder.tokenizer.token_bytes, ids)).decode()
    assert shown.count("</think>") == 2


def test_reasoning_is_given_apart(cases):
    case = cases["thinking"].with_template(THINKS)
    turns = [Message("user", (TextPart("a"),)), Message("assistant", (TextPart("b"),), reasoning="because </think>")]
    dicts = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    dicts[1]["reasoning_content"] = "because </think>"
    rendered = case.oracle.apply_chat_template(dicts, tokenize=False, add_generation_prompt=True, chat_template=THINKS)
    assert "because </think>" in rendered
    assert case.encoder.template.render(turns) == rendered
    assert case.encoder.text_ids(turns).count(*case.encoder.tokenizer.encode("</think>")) == 1


# Other operations of published templates: the text is that of transformers, and so are the ids.
HEAD, TAIL = "{% for m in messages %}<|im_start|>{{ m.role }}\n", "<|im_end|>{% endfor %}"
LISTS = "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}BODY{% endfor %}{% endif %}"
OTHERS = {
    "upper": "{{ m.content | upper }}",
    "lower": "{{ m.content | lower }}",
    "title": "{{ m.content | title }};{{ m.content.title() }}",
    "capitalize": "{{ ('<|im|>' + m.content) | capitalize }}",
    "swapcase": "{{ m.content.swapcase() }}",
    "first and last": "{{ m.content[0] ~ m.content[-1:] ~ (m.content | first) ~ (m.content | last) }}{{ m.content }}",
    "reversed": "{{ m.content[::-1] ~ (m.content | reverse) }}{{ m.content | list | reverse | join }}{{ m.content }}",
    "letters": "{% for c in m.content %}{{ c }}{% if loop.index > 5 %}{% break %}{% endif %}{% endfor %}"
    "{{ m.content }}",
    "lines": "{{ m.content.split('\n') | join('\n> ') }}",
    "words": "{{ m.content.split() | reject('equalto', 'xis') | map('upper') | join(' ') }}{{ m.content }}",
    "from the end": "{{ m.content.rsplit('\n', 1)[-1] }}{{ m.content.rpartition(' ')[0] }}{{ m.content }}",
    "stripped": "{{ m.content.lstrip() }}{{ m.content.rstrip('\n') }}{{ m.content.strip('x\n') }}{{ m.content }}",
    "filled": "{{ m.content.center(30, '*') }}{{ m.content.ljust(9) }}{{ '7'.zfill(3) }}{{ m.content | center(20) }}",
    "indented": "{{ m.content | indent(2) }}{{ m.content | indent(width='> ', first=true, blank=true) }}",
    "json": "{{ m.content | tojson }}{{ {'a': [m.content]} | tojson(indent=2) }}{{ m.content }}",
    "truncated": "{{ m.content | truncate(9) }}{{ m.content | truncate(9, true, '') }}{{ m.content }}",
    "printed": "{{ [m.content, 1, none] }}{{ {'a': m.content} }}{{ m.content }}",
    "compared": "{{ 'x' in m.content }}{{ m.content.startswith('W') }}{{ m.content < 'x' }}{{ m.content | length }}"
    "{{ m.content.find('is') }}{{ m.content.count('x') }}{{ m.content is string }}{{ m.content }}",
    "filter block": "{% filter trim %}  {{ m.content }}{% endfilter %}{% call x() %}{% endcall %}",
    "dates": "{{ strftime_now('%Y') }}{{ m.content }}",
    "sorted": "{{ m.content | unique | sort | join }}{{ m.content | batch(3) | map('join') | join('|') }}"
    "{{ m.content }}",
}
OTHERS["filter block"] = "{% macro x() %}{{ caller() }}{% endmacro %}" + OTHERS["filter block"].replace(
    "{% endcall %}", "[{{ m.content }}]{% endcall %}"
)


@pytest.mark.parametrize("name", OTHERS)
def test_operations(name, cases):
    source = HEAD + OTHERS[name] + TAIL
    case = cases["thinking"].with_template(source)
    oracle, encoder = case.oracle, case.encoder

    @settings(SETTINGS, max_examples=60)
    @given(conversations(WORDS, []))
    def check(turns):
        rendered = oracle.apply_chat_template(
            as_dicts(turns), tokenize=False, add_generation_prompt=True, chat_template=source
        )
        assert encoder.template.render(as_messages(turns)) == rendered
        assert encoder.text_ids(as_messages(turns)) == oracle(rendered, add_special_tokens=False)["input_ids"]

    check()


@pytest.mark.parametrize("body", ["{{ p.text | trim }}", "{{ p.text.split('</think>')[-1] }}", "{{ p['text'][:40] }}"])
def test_lists_of_parts(body, cases, tools):
    source = HEAD + LISTS.replace("BODY", body) + TAIL
    case = cases["thinking"].with_template(source)
    oracle, encoder = case.oracle, case.encoder

    @settings(SETTINGS, max_examples=60)
    @given(st.lists(st.lists(texts(WORDS), min_size=1, max_size=3), min_size=1, max_size=3))
    def check(turns):
        messages = [tools.say("user", *parts) for parts in turns]
        expected = oracle.apply_chat_template(
            tools.as_dicts(messages), tokenize=True, return_dict=False, chat_template=source
        )
        assert encoder.text_ids(messages) == expected

    check()


def test_a_refusal_that_depends_on_the_text(cases):
    source = HEAD + "{% if 'no' in m.content %}{{ raise_exception('it says no') }}{% endif %}{{ m.content }}" + TAIL
    case = cases["thinking"].with_template(source)
    turns = [("user", "no")]
    with pytest.raises(TemplateError, match="it says no"):
        case.oracle.apply_chat_template(as_dicts(turns), tokenize=False, chat_template=source)
    with pytest.raises(BadRequest, match=r"^it says no$"):
        case.encoder.text_ids(as_messages(turns))


def test_a_special_token_whose_writer_is_forgotten_is_an_error(cases):
    """It would be encoded as text: the model would see a prompt that it was not trained on, and no one would know."""
    mark, said = "{% set l = ['<|im_end|>', messages[0].content] %}{{ l }}", "{{ m.content }}"
    with pytest.raises(SpecError, match=r"writes '<\|im_end\|>' by a way that typed text may take"):
        _ = cases["thinking"].with_template("{% for m in messages %}" + said + "{% endfor %}" + mark).encoder
    later = "{% for m in messages %}" + said + "{% if loop.index == 3 %}" + mark + "{% endif %}{% endfor %}"
    encoder = cases["thinking"].with_template(later).encoder
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert encoder.text_ids(as_messages(turns[:2]))
    with pytest.raises(OpsinError, match="typed text may take") as caught:
        encoder.text_ids(as_messages(turns))
    assert (caught.value.status, caught.value.code) == (500, "chat_template_marker")
