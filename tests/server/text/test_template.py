"""Chat templates of all manners: what the probe finds, what they are given, and how they refuse."""

import json
import re
from datetime import datetime

import pytest

from opsin_plugins.families.llava_like import VICUNA
from opsin_plugins.families.qwen2_like import CHATML
from opsin_plugins.spec import SpecError
from opsin_server.errors import BadRequest
from opsin_server.text.template import ChatTemplate, read_chat_template
from opsin_server.text.tokenizer import Tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
PARTS = "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
BOTH = "{% if m.content is string %}{{ m.content }}{% else %}" + PARTS + "{% endif %}"


def per_message(body: str) -> ChatTemplate:
    return ChatTemplate("{% for m in messages %}" + body + "{% endfor %}", NAMES)


@pytest.mark.parametrize(("body", "forms"), [(PARTS, ("parts",)), (BOTH, ("parts", "text"))])
def test_lists_are_given_as_lists(body, forms, tools):
    template = per_message("[{{ m.role }}]" + body)
    assert set(template.template_format.forms.values()) == {forms}
    assert template.render([tools.say("user", tools.an_image(), "a", "b")]) == "[user]<image>ab"


@pytest.mark.parametrize("content", ["{{ m.content }}", "{{ m.content | trim }}", "{{ '> ' + m.content }}"])
def test_strings_where_lists_would_print_or_fail(content, tools):
    template = per_message(content)
    assert set(template.template_format.forms.values()) == {("text",)}
    assert template.render([tools.say("user", "a", "b")]).endswith("ab")


@pytest.mark.parametrize("letters", ["upper", "lower", "title"])
def test_a_list_is_told_by_its_print_in_any_letters(letters, tools):
    template = per_message("{{ m.content | " + letters + " }}")
    assert set(template.template_format.forms.values()) == {("text",)}
    assert template.render([tools.say("user", "a", "b")]) in ("AB", "ab", "Ab")


def test_each_role_has_its_own_form(tools):
    template = per_message(
        "{% if m.role == 'assistant' %}{{ m.content + eos_token }}{% else %}" + PARTS + "{% endif %}"
    )
    assert template.template_format.forms == {
        "user": ("parts",),
        "system": ("parts",),
        "assistant": ("text",),
    }
    assert template.render([tools.say("user", "a"), tools.say("assistant", "b", "c")]) == "abc</s>"


def test_a_second_text_that_would_be_lost_is_joined(tools):
    template = per_message("{{ m.content[0].text }};")
    assert template.template_format.single == {"user", "system", "assistant"}
    assert template.render([tools.say("user", "a", "b"), tools.say("assistant", "c", "d")]) == "ab;cd;"


ALTERNATES = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"""


def test_alternation_is_found_and_met(tools):
    template = ChatTemplate(ALTERNATES, NAMES)
    assert template.template_format.merges
    assert template.template_format.folds_system
    messages = [tools.say(role, role[0]) for role in ("system", "user", "user", "assistant", "assistant", "user")]
    assert template.render(messages) == "[user]s\n\nu\n\nu[assistant]a\n\na[user]u"


def test_a_refusal_is_told_in_the_templates_words(tools):
    with pytest.raises(BadRequest, match=r"^roles must alternate$") as caught:
        ChatTemplate(ALTERNATES, NAMES).render([tools.say("assistant", "a"), tools.say("user", "b")])
    assert caught.value.param == "messages"
    assert caught.value.status == 400


def test_a_system_message_that_would_vanish_is_folded(tools):
    template = per_message("{% if m.role != 'system' %}{{ m.content }}{% endif %}")
    assert template.template_format.folds_system
    assert template.render([tools.say("system", "s"), tools.say("user", "u")]) == "s\n\nu"


def test_an_unexpected_failure_names_no_object(tools):
    template = per_message("{{ m.content }}{% if m.content == 'x' %}{{ m.content + joiner }}{% endif %}")
    with pytest.raises(BadRequest, match="TypeError") as caught:
        template.render([tools.say("user", "x")])
    assert "0x" not in caught.value.message


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for m in messages %}", "compile"),
        ("{{ unknown_function() }}", "unknown_function"),
        ("Hello", "does not appear"),
        ("{{ raise_exception('never') }}", "never"),
    ],
)
def test_a_template_that_cannot_work_stops_the_start(source, why):
    with pytest.raises(SpecError, match=why):
        ChatTemplate(source, NAMES)


def test_what_templates_find_around_them(tools):
    source = """{{ bos_token }}{% if tools is none and documents is none and add_generation_prompt %}T{% endif %}
{{- {'a': '<é>'} | tojson }}{{ [1] | tojson(indent=1) }}{{ strftime_now('%Y') }}{{ dict(a=1).a }}
{%- for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% if loop.first %}{% continue %}{% endif %}
{%- break %}{% endfor %}{{ pad_token is defined }}"""
    shown = ChatTemplate(source, NAMES).render([tools.say("user", "x")])
    assert shown == f'<s>T{{"a": "<é>"}}[\n 1\n]{datetime.now().year}1xFalse'


def test_blocks_are_trimmed(tools):
    template = ChatTemplate(
        "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n", NAMES
    )
    assert template.render([tools.say("user", "x")]) == "x\n"


def test_a_text_left_out_is_an_error(cases, tools):
    """Nothing that a request says is dropped in silence."""
    last = (
        "{% for m in messages %}{% if m.role != 'assistant' or loop.length < 5 %}{{ m.content }}{% endif %}{% endfor %}"
    )
    encoder = cases["mini"].with_template(last).encoder
    turns = [tools.say(role, "x") for role in ("user", "assistant", "user", "assistant", "user")]
    assert encoder.text_ids(turns[:3])
    with pytest.raises(BadRequest, match=re.escape("leaves out the text of message 1 (assistant)")):
        encoder.text_ids(turns)


def test_directories_without_a_template_get_the_familys(cases, tools):
    for name, own in (("mini", CHATML), ("metaspace", VICUNA)):
        case = cases[name].with_template(None)
        encoder = case.encoder
        assert encoder.takes_images
        messages = [tools.say("system", "s"), tools.say("user", tools.an_image(), "a", tools.an_image())]
        assert encoder.text_ids(messages) == cases[name].with_template(own).encoder.text_ids(messages)


def test_no_template_at_all_is_an_error(cases):
    case = cases["mini"].with_template(None)
    silent = type("Silent", (), {"name": "silent", "chat_template": lambda self, files: None})()
    with pytest.raises(SpecError, match="no chat template, and silent"):
        read_chat_template(case.files, silent, NAMES)


def test_names_come_from_strings_and_objects(cases, tmp_path):
    config = {
        "eos_token": {"content": "</s>"},
        "pad_token": None,
        "add_bos_token": True,
        "extra_special_tokens": {"q": "<q>"},
    }
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>"}))
    source = cases["mini"].directory / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_text(source.read_text())
    assert Tokenizer(tmp_path, config).names == {"eos_token": "</s>", "bos_token": "<s>", "q": "<q>"}


BESIDE_PICTURES = """\
{%- set seen = namespace(image=false) -%}
{%- for m in messages -%}{%- if m.content is not string -%}{%- for p in m.content -%}
{%- if p.type == 'image' -%}{%- set seen.image = true -%}{%- endif -%}
{%- endfor -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'system' and seen.image -%}{{ raise_exception('no system message beside images') }}{%- endif -%}
[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}{%- for p in m.content -%}
{{ '<image>' if p.type == 'image' else p.text }}{%- endfor -%}{% endif %}
{%- endfor -%}"""


def test_a_system_message_that_is_refused_beside_pictures_stands_in_the_first_turn(tools):
    template = ChatTemplate(BESIDE_PICTURES, NAMES)
    alone = [tools.say("system", "be brief"), tools.say("user", "hi")]
    assert template.render(alone) == "[system]be brief[user]hi"
    beside = [tools.say("system", "be brief"), tools.say("user", tools.an_image(), "what?")]
    assert template.render(beside) == "[user]be brief\n\n<image>what?"
    never = ChatTemplate(BESIDE_PICTURES.replace("m.role == 'system' and ", ""), NAMES)
    with pytest.raises(BadRequest, match="no system message beside images"):
        never.render(beside)
