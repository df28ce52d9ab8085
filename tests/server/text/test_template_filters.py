"""The bounded filters, tests, operators and calls give what Jinja's own give."""

import json

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from opsin_plugins.spec import SpecError
from opsin_server.text.sandbox import Program
from opsin_server.text.template_filters import bounded_filters

VARIABLES = {
    "s": "  Hello, wörld-wide (straße) <b>\n\nline two\r\n  three ",
    "e": "",
    "n": [3, 1, 2, 2, -4],
    "w": ["b", "A", "c", "a"],
    "f": 2.345,
    "d": {"b": 1, "A": [2], "c": "x"},
    "m": [
        {"role": "user", "n": 1, "c": {"x": "p"}},
        {"role": "tool", "n": 2, "c": {"x": "q"}},
        {"role": "user", "n": 3},
    ],
    "none": None,
}
EXPRESSIONS = """
-3 | abs; f | abs
n | batch(2) | list; n | batch(3, 'x') | list; n | slice(2) | list; n | slice(4, 0) | list
s | capitalize; s | title; s | upper; s | lower; s | trim; s | trim(' e'); 'straße' | upper; 5 | upper
s | center(90); 'x' | center; s | truncate(12); s | truncate(12, true); s | truncate(12, true, '!', 0); s | truncate
n | count; s | length; d | length; s | wordcount
missing | default('x'); e | default('x'); e | d('x', true); none | default('y', boolean=true)
d | dictsort; d | dictsort(true); {'b': 1, 'a': 2} | dictsort(by='value', reverse=true)
n | first; n | last; w | first; [] | first is defined; s | first; s | last
'3' | float; 'x' | float(1.5); '7' | int; 'x' | int(2); '0x1A' | int(base=16); 3.7 | int
'%s-%d' | format('a', 3); '%(a)s' | format(a=1); '%5.1f|' | format(2.25)
m | groupby('role') | list | length; m | groupby('n') | map('first') | list
m | groupby('c.x', default='z') | map(attribute=0) | list
s | indent; s | indent(2, true); s | indent(2, blank=true); s | indent('> ', true, true); e | indent(first=true)
d | items | list; d.items() | list; d.keys() | list; d.values() | list; d.get('b'); d.get('zz', 5)
n | join; n | join(', '); m | join('|', attribute='role'); w | join(e); s | join('.'); [] | join('x')
[none, 1] | join
s | list | length; d | list; 'abc' | list
m | map(attribute='role') | list; m | map(attribute='q', default='z') | list; w | map('upper') | join
w | map('replace', 'a', 'b') | list
n | max; n | min; w | max; w | max(case_sensitive=true); m | max(attribute='n'); [] | max is defined
n | reject('odd') | list; n | select('gt', 1) | list
m | selectattr('role', 'equalto', 'user') | map(attribute='n') | list
m | rejectattr('role', 'in', ['user']) | list | length; n | select | list; m | selectattr('c') | list | length
n | select('in', [1, 2]) | list
s | replace('l', 'L'); s | replace('l', 'L', 1); s | replace(e, '-'); 5 | replace('5', 'x'); s | replace('zz', '')
n | reverse | list; s | reverse; f | round; f | round(1); f | round(2, 'floor'); f | round(method='ceil')
-f | round(-1)
s | safe; s | escape; s | e | length; (s | escape) ~ '<'; ('<b>' | safe) ~ '<i>'; ('<b>' | safe) + '<i>'
'<i>' + ('<b>' | safe)
n | sort; w | sort; w | sort(case_sensitive=true, reverse=true)
m | sort(attribute='role,n') | map(attribute='n') | list
n | string; s | string; none | string; true | string; [s, none, 1.0] | string; d | string
n | sum; m | sum(attribute='n'); m | sum('n', 10); [[1], [2]] | sum(start=[]); [] | sum
n | tojson; d | tojson; d | tojson(indent=2); d | tojson(sort_keys=true, indent=1); s | tojson(ensure_ascii=true)
[s, none, true, 1.5, {'a': []}] | tojson; d | tojson(separators=(',', ':')); d | tojson(indent=none)
n | unique | list; w | unique | list; w | unique(case_sensitive=true) | list
m | unique(attribute='role') | list | length
m | attr('role') is defined; 'x' | attr('upper') is defined; m[0] | attr('keys') is callable
1 + 2 * 3 - 4 / 2; 7 // 2; 7 % 4; 2 ** 10; -7 // 2; 1.5 + 1; 'a' * 3; 3 * 'a'; [1] * 2; [1] + [2]; (1,) + (2,)
'a' ~ 1 ~ none
'%s' % 'a'; '%s %s' % ('a', 1); '%(x)s' % {'x': 1}; '%s' % [1]; 5 % 3
'{} {x} {0!r:>4}'.format(1, x='y') if false else 1
1 < 2 < 3; 'a' in s; 'a' not in w; 'b' in d; 3 in n; n == [3]; n != n; 'x' is eq 'x'; 1 is in [1]; w is sequence
s is string
m[0].role; m[0]['role']; m[-1]['role']; m[1:] | length; m[::-1] | map(attribute='n') | list; m[9] is defined; s[2]
s[-2:]; s[::2]; n[n[1]]
s.split(); s.split(','); s.split(' ', 1); s.rsplit(' ', 1); s.splitlines(); s.splitlines(true); s.partition(',')
s.rpartition('l')
s.strip(); s.lstrip(); s.rstrip(); s.strip(' \\n'); s.startswith('  H'); s.endswith(('x', ' ')); s.removeprefix('  ')
s.removesuffix(' ')
s.upper(); s.lower(); s.title(); s.capitalize(); s.swapcase(); s.casefold(); s.find('l'); s.rfind('l'); s.index('l')
s.count('l')
s.isdigit(); '12'.isdigit(); 'ab'.isalpha(); s.replace('l', 'L', 2); ', '.join(w); '-'.join('abc'); '7'.zfill(3)
'-7'.zfill(4)
s.center(80, '*'); 'x'.ljust(3) ~ '|'; 'x'.rjust(3); n.index(2); n.count(2); w.copy(); d.copy()
range(3) | list; range(1, 9, 3) | list; dict(a=1, b=2); dict([('a', 1)]); namespace(a=1).a; cycler(1, 2).next()
joiner(',')() ~ 'x'
[[1, [2]], (3,), {'a': (4,)}]; {}; []; (); (1,); {'a': s}['a']; {1: 2}[1]; [s, s][0] == s; none; true; 1.5; 1e3
'a' 'b'
'yes' if n else 'no'; not n; n and w; e or 'x'; missing is undefined; m is iterable; d is mapping; 4 is divisibleby 2
s is lower
"""
TEMPLATES = [
    "{% for x in n if x > 1 %}{{ loop.index }}{{ x }}{{ loop.first }}{% else %}none{% endfor %}",
    "{% for x in n %}{% if x == 1 %}{% continue %}{% endif %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for c in s %}{{ c }}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is sequence else x }}{{ loop.depth }}{% endfor %}",
    "{% for x in n %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x) }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}",
    "{% macro f(a, b='x') %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) ~ f(1, 2, 3, k=4) ~ f(s) }}",
    "{% macro f(a) %}[{{ caller(a) }}]{% endmacro %}{% call(x) f('y') %}<{{ x }}>{% endcall %}",
    "{% macro f(a, b=1) %}{{ a }}{{ b }}{{ varargs }}{% endmacro %}{{ f(*n) }}{{ f(*'ab') }}",
    "{% set x = namespace(l=[]) %}{% for c in w %}{% set x.l = x.l + [c ~ c] %}{% endfor %}{{ x.l }}",
    "{% set x %}  a{{ s }}{% endset %}{{ x | length }}{{ x }}{% set y | upper %}b{% endset %}{{ y }}",
    "{% filter upper | trim %} a{{ s }}{% endfilter %}{% with a = 1, b = s %}{{ a }}{{ b }}{% endwith %}",
    "{% set a, b = 1, 'x' %}{{ a }}{{ b }}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% autoescape true %}{{ '<b>' }}{{ s }}{{ '<i>' | safe }}<p>{% endautoescape %}{{ '<b>' }}",
    "{% block a %}x{{ s }}{% endblock %}{% raw %}{{ s }}{% endraw %}{# no #}  {%- if n %} y {%- endif %}",
    "{% if s is string and 'H' in s and s[2] == 'H' %}{% elif n %}{% else %}{% endif %}{{ 'A' if s else 'B' }}",
]


def jinjas() -> ImmutableSandboxedEnvironment:
    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson  # as transformers has it
    return environment


def outcome(render) -> str:
    try:
        return str.__str__(render())
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize("line", [line for line in EXPRESSIONS.splitlines() if line])
def test_expressions(line):
    environment = jinjas()
    for expression in line.split("; "):
        source = "{{ " + expression + " }}"
        expected = outcome(lambda source=source: environment.from_string(source).render(VARIABLES))
        assert outcome(lambda source=source: Program(source).run(VARIABLES)) == expected, expression
        assert not expected.endswith("Error"), expression


@pytest.mark.parametrize("source", TEMPLATES)
def test_statements(source):
    expected = jinjas().from_string(source).render(VARIABLES)
    assert Program(source).run(VARIABLES) == expected


def test_every_filter_is_compared():
    unused = [name for name in bounded_filters() if f"| {name}" not in EXPRESSIONS and f"('{name}'" not in EXPRESSIONS]
    assert not unused


@pytest.mark.parametrize(
    "name",
    ["filesizeformat", "forceescape", "pprint", "random", "striptags", "urlencode", "urlize", "wordwrap", "xmlattr"],
)
def test_filters_that_nothing_bounds_do_not_exist(name):
    assert name in jinjas().filters
    with pytest.raises(SpecError, match=f"No filter named '{name}'"):
        Program("{{ 'x' | " + name + " }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ n | map('nothing') | list }}",
        "{{ n | join(1, 2, 3, 4) }}",
        "{{ 5.strip() }}",
        "{{ s.nothing() }}",
        "{{ missing.x }}",
        "{{ s.split('') }}",
        "{{ s.index('zz') }}",
        "{{ '%d' % 'x' }}",
        "{{ '{}'.format() }}",
        "{{ 1 + 'x' }}",
        "{{ 1 / 0 }}",
        "{{ [1] | tojson(indent='x', nothing=1) }}",
        "{{ namespace() | tojson }}",
    ],
)
def test_mistakes_are_errors_in_both(source):
    with pytest.raises(Exception) as expected:
        jinjas().from_string(source).render(VARIABLES)
    with pytest.raises((type(expected.value), SpecError)):
        Program(source).run(VARIABLES)
