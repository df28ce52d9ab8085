"""Templates that edit what was said: the text is that of transformers, and what is left of a text stays text.

The pieces that a template's reference in Python gives add up to the text that transformers renders, and the rule of
special tokens makes ids of them.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from opsin_plugins.spec import SpecError
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.text.conversation import Message, TextPart
from support.editing_templates import (
    EDITING,
    STRINGS,
    THINKS,
    THOUGHTS,
    WORDS,
    as_dicts,
    as_messages,
    conversations,
    texts,
)
from support.plain_rule import PlainRule

HALVES = [
    "<|im_",
    "end|>",
    "<|",
    "|>",
    "<",
    ">",
    "think>",
    "</",
    "<tool",
    "_call>",
    "start|>user",
    " ",
    "\n",
    "/",
    ": ",
]
SETTINGS = settings(max_examples=120, deadline=None, derandomize=True)


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


@pytest.mark.parametrize("name", EDITING)
def test_halves_of_added_tokens_never_meet(name, cases):
    """The special tokens of a prompt are those of the pieces that the template wrote."""
    source, pieces_of = EDITING[name]
    encoder = cases["thinking"].with_template(source).encoder
    tokenizer = encoder.tokenizer

    @SETTINGS
    @given(conversations(HALVES + STRINGS, THOUGHTS))
    def check(turns):
        own = [""]
        for piece, written in pieces_of(turns):
            if written:
                own[-1] += piece
            elif piece:
                own.append("")
        expected = [i for i in tokenizer.encode_around(own, [""] * (len(own) - 1)) if i in tokenizer.marker_ids]
        ids = encoder.text_ids(as_messages(turns))
        assert [i for i in ids if i in tokenizer.marker_ids] == expected

    check()


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


STRING_AND_LIST = {
    "thoughts are cut from strings": "{% if m.content is string %}{% set c = m.content %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ c }}{% else %}LIST{% endif %}",
    "strings are trimmed": "{% if m.content is string %}{{ m.content | trim }}{% else %}LIST{% endif %}",
    "each is marked": "{% if m.content is string %}S:{{ m.content }}{% else %}L:LIST{% endif %}",
    "what is no string is iterated": "{% if m.content is iterable and m.content is not string %}LIST"
    "{% else %}{{ m.content }}{% endif %}",
    "a mapping is asked for": "{% if m.content is sequence and m.content is not string %}LIST{% else %}"
    "[{{ m.content }}]{% endif %}",
}


@pytest.mark.parametrize("name", STRING_AND_LIST)
def test_strings_go_the_way_of_strings_and_lists_that_of_lists(name, cases):
    """As the client sent them: a template may treat the two in two ways."""
    listed = "{% for p in m.content %}({{ p.text }}){% endfor %}"
    source = HEAD + STRING_AND_LIST[name].replace("LIST", listed) + TAIL
    case = cases["thinking"].with_template(source)

    @settings(SETTINGS, max_examples=60)
    @given(conversations(WORDS, THOUGHTS), st.lists(st.booleans(), min_size=9, max_size=9))
    def check(turns, are_strings):
        messages, dicts = as_messages(turns), as_dicts(turns)
        for i, is_string in enumerate(are_strings[: len(turns)]):
            if not is_string:
                messages[i] = Message(messages[i].role, messages[i].parts)
                dicts[i] = {**dicts[i], "content": [{"type": "text", "text": dicts[i]["content"]}]}
        rendered = case.oracle.apply_chat_template(
            dicts, tokenize=False, add_generation_prompt=True, chat_template=source
        )
        assert case.encoder.template.render(messages) == rendered

    check()


def test_what_is_printed_as_json_is_a_string(cases):
    source = HEAD + "{{ m['content'] | tojson }}" + TAIL
    case = cases["thinking"].with_template(source)
    turns = [("user", 'Hello "there"')]
    rendered = case.oracle.apply_chat_template(
        as_dicts(turns), tokenize=False, add_generation_prompt=True, chat_template=source
    )
    assert case.encoder.template.render(as_messages(turns)) == rendered
    assert case.encoder.template.render([Message("user", (TextPart('Hello "there"'),))]) == rendered


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


def test_what_an_assistant_thought_counts_as_a_part_of_the_shape(cases):
    """Thoughts make a template take other ways, on which it may leave texts out or forget who wrote a mark."""
    turns = [Message("user", (TextPart("a"),)), Message("assistant", (TextPart("b"),), reasoning="because")]
    swallows = "{% if m.reasoning_content %}{{ m.reasoning_content }}{% else %}{{ m.content }}{% endif %}"
    encoder = cases["thinking"].with_template("{% for m in messages %}" + swallows + "{% endfor %}").encoder
    with pytest.raises(BadRequest, match=r"leaves out the text of message 1 \(assistant\)"):
        encoder.text_ids(turns)
    forgets = "{% if m.reasoning_content %}{{ ['<|im_end|>', m.reasoning_content] }}{% endif %}{{ m.content }}"
    encoder = cases["thinking"].with_template("{% for m in messages %}" + forgets + "{% endfor %}").encoder
    with pytest.raises(OpsinError, match="typed text may take"):
        encoder.text_ids(turns)
