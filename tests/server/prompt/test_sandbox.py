"""Hostile templates are stopped by time, by size and by the sandbox, while other threads go on."""

import threading
import time

import pytest
from jinja2.exceptions import SecurityError

from opsin_plugins.spec import SpecError
from opsin_server.errors import OpsinError
from opsin_server.prompt.budget import MAX_OUTPUT, TemplateStopError
from opsin_server.prompt.sandbox import Program
from opsin_server.prompt.template import ChatTemplate

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"
STOPPED = {
    "output": LOOP.replace("BODY", "x" * 50),
    "silence": LOOP.replace("BODY", ""),
    "assignment": LOOP.replace("BODY", "{% set x = i * j %}"),
    "filters": LOOP.replace("BODY", "{{ range(9999) | map('string') | map('length') | sum }}"),
    "macros": "{% macro f(n) %}{% if n %}{% set _ = f(n - 1) ~ f(n - 1) %}{% endif %}{% endmacro %}{{ f(60) }}",
    "doubling": "{% set n = namespace(s='xx') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "adding": "{% set n = namespace(s='xx') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "lists": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "repeating": "{{ ('x' * 90000) * 90000 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set n = namespace(s=3) %}{% for i in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "width": "{{ 'x'.ljust(10 ** 10) }}",
    "centre": "{{ 'x' | center(10000000000) }}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "joined": "{{ (['x' * 9000] * 9000) | join }}",
}


@pytest.mark.parametrize("name", STOPPED)
def test_stopped(name):
    program, start = Program(STOPPED[name]), time.thread_time()
    with pytest.raises(TemplateStopError) as caught:
        program.run({"messages": []})
    assert caught.value.status == 500
    assert time.thread_time() - start < 2  # 0.2 s, and the longest single step between two looks at the clock


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
HOSTILE_LATER = HONEST + "{% if messages[0].content == 'now' %}" + STOPPED["silence"] + "{% endif %}"


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
        ChatTemplate(STOPPED["silence"], {})
