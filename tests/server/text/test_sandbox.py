"""Hostile templates are stopped by time, by size and by the sandbox, while other threads go on."""

import json
import subprocess
import sys
import threading

import pytest
from jinja2.exceptions import SecurityError

from opsin_plugins.spec import SpecError
from opsin_server.errors import OpsinError
from opsin_server.text.sandbox import Program
from opsin_server.text.template import ChatTemplate
from opsin_server.text.template_budget import MAX_MADE, MAX_OUTPUT
from support import hostile_templates
from support.hostile_templates import HOSTILE, SECONDS, TIME


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict]:
    """What each hostile template came to, in a process of its own whose address space is limited."""
    done = subprocess.run([sys.executable, hostile_templates.__file__], capture_output=True, text=True, check=True)
    return {told["name"]: told for told in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", HOSTILE)
def test_stopped(name, outcomes):
    told = outcomes[name]
    assert told["error"].startswith("TemplateStopError: the chat template ")
    assert told["cpu"] < SECONDS + 0.5  # of CPU time: the budget, and the longest step between two looks at it


def test_memory_is_bounded(outcomes):
    """What the largest of them had at once, beside the modules: MAX_MADE characters of four bytes, and their places."""
    assert max(told["grown"] for told in outcomes.values()) < 8 * MAX_MADE * MAX_OUTPUT


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{{ (messages | attr('append'))(1) }}",
    ],
)
def test_nothing_leads_out(source):
    with pytest.raises(SecurityError):
        Program(source).run({"messages": [1]})


def test_output_may_hold_the_conversation():
    text = "x" * (2 * MAX_OUTPUT)
    assert Program("{{ messages[0] }}").run({"messages": [text]}, len(text)) == text


HONEST = "{% for m in messages %}{{ m.content }}{% endfor %}"
HOSTILE_LATER = HONEST + "{% if messages[0].content == 'now' %}" + TIME["silence"] + "{% endif %}"


def test_others_go_on_meanwhile(tools):
    hostile, honest = ChatTemplate(HOSTILE_LATER, {}), ChatTemplate(HONEST, {})
    failures: list[OpsinError] = []

    def attack():
        try:
            hostile.render([tools.say("user", "now")])
        except OpsinError as error:
            failures.append(error)

    threads = [threading.Thread(target=attack) for _ in range(4)]
    for thread in threads:
        thread.start()
    count = 0
    while any(thread.is_alive() for thread in threads):
        assert honest.render([tools.say("user", "a")]) == "a"
        count += 1
    assert [error.code for error in failures] == ["chat_template_limit"] * 4
    assert count > 10


def test_endless_recursion_ends(tools):
    again = "{% macro f() %}{{ f() }}{% endmacro %}{{ messages[0].content }}"
    template = ChatTemplate(again + "{% if messages[0].content == 'now' %}{{ f() }}{% endif %}", {})
    with pytest.raises(OpsinError, match="RecursionError") as caught:
        template.render([tools.say("user", "now")])
    assert caught.value.status == 500


def test_a_template_hostile_from_the_start_does_not_load():
    with pytest.raises(SpecError, match=r"0\.5 s"):
        ChatTemplate(TIME["silence"], {})


def test_a_source_that_is_too_long_does_not_load():
    with pytest.raises(SpecError, match="262145 characters; the limit is 262144"):
        Program(" " * (2**18 + 1))


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in x %}" * 30 + "{% endfor %}" * 30,  # more blocks than Python nests
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "-" * 3000 + "1 }}",
        "{{ " + "1 + " * 9000 + "1 }}",
    ],
)
def test_a_source_that_python_cannot_compile_does_not_load(source):
    with pytest.raises(SpecError, match="does not compile"):
        Program(source)


def test_a_refusal_is_short(tools):
    template = ChatTemplate(HONEST + "{% if messages | length > 3 %}{{ raise_exception('x' * 9999) }}{% endif %}", {})
    with pytest.raises(OpsinError) as caught:
        template.render([tools.say("user", "a"), tools.say("assistant", "b")] * 2)
    assert caught.value.message == "x" * 1024


def test_honest_templates_have_room_for_their_conversation(tools):
    """A long conversation is edited message by message, put into lists, and written."""
    source = (
        "{% set n = namespace(l=[], t='') %}{% for m in messages %}{% set n.l = n.l + [m.content | trim] %}{% endfor %}"
        "{% for c in n.l %}{{ c.split('</think>')[-1].replace('b', 'c').splitlines() | join('\n') }}{% endfor %}"
    )
    text = "a word and\n" * 2000
    messages = [tools.say(role, text) for role in ("user", "assistant") * 50]
    assert ChatTemplate(source, {}).render(messages) == text.strip() * 100
