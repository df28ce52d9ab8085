"""Strings' methods in templates: the result is Python's, and each character still knows who wrote it.

What the template wrote is spelled in one alphabet here, what users typed in another, so that every character of a
result tells where it must have come from.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_server.text import template_strings as strings
from opsin_server.text.sandbox import Program
from opsin_server.text.template_budget import Budget, TemplateStopError
from opsin_server.text.template_formatting import percent
from opsin_server.text.trusted import OWN, TEXT, Trusted, joined, own, runs, said_in, trust_of

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
OWN_LETTERS = "aAbsSßﬁ,- \n+x0"
TYPED_LETTERS = "жЖяΣσςև;\t\u3000\u2028"  # և becomes two letters in capitals, Σ two kinds of small ones

own_texts = st.text(OWN_LETTERS, max_size=5).map(own)
typed_texts = st.text(TYPED_LETTERS, max_size=5)
any_text = st.one_of(own_texts, typed_texts)
mixed = st.lists(any_text, max_size=5).map(lambda pieces: joined([own(""), *pieces]))
counts = st.integers(-1, 4)
widths = st.integers(0, 20)


def is_typed(char: str) -> bool:
    return char in ";\t\u3000\u2028" or "\u0370" <= char <= "\u058f"  # Greek, Cyrillic, Armenian


def check(found, expected, may_forget: bool = False) -> None:
    assert found == expected
    if isinstance(found, list | tuple):
        for one, plain in zip(found, expected, strict=True):
            check(one, plain, may_forget)
    elif isinstance(found, str):
        marks = [TEXT if is_typed(char) else OWN for char in found]
        forgotten = may_forget and type(found) is str
        assert forgotten or list(trust_of(found)) == marks


ARGUMENTS = {
    **dict.fromkeys(["split", "rsplit"], st.tuples(st.one_of(st.none(), any_text.filter(len)), counts)),
    **dict.fromkeys(["strip", "lstrip", "rstrip"], st.one_of(st.tuples(), st.tuples(any_text))),
    **dict.fromkeys(["partition", "rpartition"], st.tuples(any_text.filter(len))),
    **dict.fromkeys(["removeprefix", "removesuffix"], st.tuples(any_text)),
    **dict.fromkeys(["center", "ljust", "rjust"], st.tuples(widths, any_text.filter(lambda text: len(text) == 1))),
    **dict.fromkeys(["count", "find", "index", "rfind", "rindex", "startswith", "endswith"], st.tuples(any_text)),
    "join": st.tuples(st.lists(st.one_of(any_text, mixed), max_size=4)),
    "replace": st.tuples(any_text, any_text, counts),
    "splitlines": st.tuples(st.booleans()),
    "zfill": st.tuples(widths),
}


@pytest.mark.parametrize("name", sorted(strings.METHODS))
def test_methods(name):
    @SETTINGS
    @given(st.one_of(mixed, typed_texts), ARGUMENTS.get(name, st.tuples()))
    def compare(text, args):
        try:
            expected = getattr(str.__str__(text), name)(*args)
        except ValueError as error:
            with pytest.raises(ValueError, match=str(error)):
                strings.call(Budget(0), text, name, args, {})
            return
        found = strings.call(Budget(0), text, name, args, {})
        # Forgotten is what nobody needs: an empty text to replace, a letter that grows in some places only.
        check(found, expected, may_forget=name in ("title", "capitalize") or (name == "replace" and not args[0]))

    compare()


@pytest.mark.parametrize("name", sorted(strings.METHODS))
def test_methods_keep_who_said_what(name):
    """The same for text that knows its message: the result is that of plain text, and no letter changes its writer."""
    said = typed_texts.map(lambda text: said_in(text, 7))
    mark = trust_of(said_in("x", 7))

    @SETTINGS
    @given(st.lists(st.one_of(own_texts, said), max_size=5).map(lambda pieces: joined([own(""), *pieces])),
           ARGUMENTS.get(name, st.tuples()))  # fmt: skip
    def compare(text, args):
        try:
            expected = getattr(str.__str__(text), name)(*args)
        except ValueError:
            return
        found = strings.call(Budget(0), text, name, args, {})
        assert found == expected
        for one in found if isinstance(found, list | tuple) else [found]:
            if isinstance(one, str):
                for char, who in zip(one, trust_of(one), strict=True):
                    assert who in ((mark, TEXT) if is_typed(char) else (OWN, TEXT))

    compare()


def test_the_methods_of_python_that_are_left_out():
    """Each is either bounded and tested above, or refused by name."""
    others = {name for name in dir(str) if not name.startswith("_")} - set(strings.METHODS)
    assert others == {"encode", "expandtabs", "format", "format_map", "maketrans", "translate"}
    for name in others - {"format"}:
        with pytest.raises(TemplateStopError, match=f"str.{name}, which is not allowed"):
            strings.call(Budget(0), "x", name, (), {})


@SETTINGS
@given(mixed, mixed, st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([None, 1, 2, -1, -3]))
def test_operators(a, b, start, stop, step):
    plain, other = str.__str__(a), str.__str__(b)
    check(a + b, plain + other)
    check(a + "ж", plain + "ж")
    check("ж" + a, "ж" + plain)
    check(a * 2, plain * 2)
    check(a[start:stop:step], plain[start:stop:step])
    check(list(a), list(plain))
    check(str(a), plain)
    if plain:
        check(a[0], plain[0])


@SETTINGS
@given(st.lists(any_text, max_size=8))
def test_runs(pieces):
    text = joined([own(""), *pieces])
    around, typed = runs(text)
    assert len(around) == len(typed) + 1
    assert "".join(a + t for a, t in zip(around, [*typed, ""], strict=True)) == text
    assert not any(is_typed(char) for piece in around for char in piece)
    assert all(is_typed(char) for piece in typed for char in piece)
    assert all(typed)


def test_text_alone_is_text():
    assert runs("abc") == (["", ""], ["abc"])
    assert type(joined(["a", "b"], "-")) is str


FORMS = ["%s", "%5s", "%-5s", "%.2s", "%d", "%05d", "%+d", "%x", "%.2f", "%e", "%r", "%%", "%c", "%i", "%z", "%", "% d"]


@SETTINGS
@given(
    st.lists(st.one_of(st.sampled_from(FORMS), own_texts), max_size=5).map("".join).map(own),
    st.lists(st.one_of(typed_texts, st.integers(0, 99), own_texts, st.floats(0, 9)), max_size=4).map(tuple),
)
def test_percent(form, values):
    try:
        expected = str.__str__(form) % values
    except (TypeError, ValueError):
        with pytest.raises((TypeError, ValueError)):
            percent(Budget(0), form, values)
        return
    assert percent(Budget(0), form, values) == expected


def test_percent_by_name_and_of_one_value():
    assert percent(Budget(0), "%(a)s %(b)03d %%", {"a": "x", "b": 7}) == "x 007 %"
    assert percent(Budget(0), "%s", [1, 2]) == "[1, 2]"
    assert percent(Budget(0), "%s", {"a": 1}) == "{'a': 1}"
    for form, values in [("%(a)s", "x"), ("%s %s", "x"), ("%s", ("x", "y"))]:
        with pytest.raises(TypeError):
            percent(Budget(0), form, values)
    with pytest.raises(KeyError):
        percent(Budget(0), "%(c)s", {"a": 1})


def render(source: str, **variables) -> str:
    return Program(source).run(variables)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ '<%s|%s>' % (x, y) }}", "<ж|ж>"),
        ("{{ '<%s|%s>' | format(x, y) }}", "<ж|ж>"),
        ("{{ '<{}|{}>'.format(x, y) }}", "<ж|ж>"),
        ("{{ '<{1}|{0}>'.format(x, y) }}", "<ж|ж>"),
        ("{{ '<{a}|{{{b}}}>'.format(a=x, b=y) }}", "<ж|{ж}>"),
        ("{{ '<{a[0]}|{b.c}>'.format(a=[x], b={'c': y}) }}", "<ж|ж>"),
        ("{{ [x, y] | join('<s>') }}{{ '<s>'.join([x]) }}", "ж<s>жж"),
        ("{{ x.replace('ж', '<s>') }}{{ ('<s>' ~ x) | replace('s', 'b') }}", "<s><b>ж"),
        ("{% set t %}<s>{{ x }}{% endset %}{{ t | trim }}", "<s>ж"),
        ("{% macro m(a) %}<s>{{ a }}{{ caller() }}{% endmacro %}{% call m(x) %}</s>{% endcall %}", "<s>ж</s>"),
        ("{% filter upper %}<s>{{ x }}{% endfilter %}", "<S>Ж"),
        ("{% for t in ['<s>', x] %}{{ t }}{% endfor %}", "<s>ж"),
        ("{% for t in ['<s>', [x]] recursive %}{{ loop(t) if t is not string else t }}{% endfor %}", "<s>ж"),
        ("{% set n = namespace(t='<s>') %}{% set n.t = n.t + x %}{{ n.t }}", "<s>ж"),
        ("{{ ({'a': '<s>'}).a }}{{ {'a': '<s>'}['a'] }}{{ x if x else '<s>' }}", "<s><s>ж"),
        ("{{ ('<s>' ~ x).strip('<') }}{{ ('<s>' ~ x)[1:] }}{{ ('<s>' ~ x)[0] }}", "s>жs>ж<"),
        ("{{ ('<s>\n' ~ x) | indent(2) }}", "<s>\n  ж"),
        ("{{ 'some words' | title }}{{ ('a ' ~ x) | title }}{{ x | default('<s>') }}{{ z | default('<s>') }}", None),
        ("{{ ['<s>', '<b>'] | first }}{{ ['<s>'] | map('upper') | list | last }}{{ '<s>' | string }}", "<s><S><s>"),
        ("{{ cycler('<s>', 'b').next() }}{{ joiner('<s>')() }}{{ dict(a='<s>').a }}", "<s><s>"),
    ],
)
def test_every_way_through_a_template(source, expected):
    """Here ж is typed, and all else is the template's."""
    shown = render(source, x="ж", y="ж")
    assert expected is None or shown == expected
    for char, mark in zip(str.__str__(shown), trust_of(shown), strict=True):
        assert mark == (TEXT if is_typed(char) else OWN)


@pytest.mark.parametrize(
    "source",
    [
        "{{ [x] }}{{ {'a': x} }}{{ [x] | string }}{{ x | tojson }}{{ x | escape }}{{ x | safe }}",
        "{{ [x] | tojson(indent=1) }}{{ '<{:>3}|{!s:3}>'.format(x, 'b') }}",
        "{{ '%r' % x }}{{ '%5s' % x }}{{ '{!r:5}'.format(x) }}{{ x.format('<s>') }}{{ x.join(['', '']) }}",
        "{{ x | int(x) }}{{ x | list | string }}{{ x | reverse }}{{ x | batch(1) | list }}{{ x | title }}{{ x ~ 1 }}",
        "{{ (x * 2)[::-1] }}{{ x | sort | join }}{{ dict(a=x) | items | list }}{{ x | center(9) }}",
        "{{ x | truncate(3) }}{{ x | indent(3, true) }}{{ x | replace('ж', x) }}{{ x | wordcount }}{{ x | first }}",
    ],
)
def test_what_was_typed_is_never_the_templates(source):
    shown = render(source, x="ж<s>жи")
    for char, mark in zip(str.__str__(shown), trust_of(shown), strict=True):
        assert not (is_typed(char) and mark == OWN)


@pytest.mark.parametrize(
    "expression",
    [
        "t | tojson",
        "[t, 1, none] | string",
        "{'a': (t,)} | tojson(indent=1)",
        "'%9s' % t",
        "'{:>9}'.format(t)",
        "'%r' % [t]",
    ],
)
def test_what_is_made_of_nothing_but_the_templates_own_is_its_own(expression):
    shown = render("{% set t = '<s>' %}{{ " + expression + " }}")
    assert trust_of(shown) == OWN * len(shown)
    with_text = render("{% set t = '<s>' ~ x %}{{ " + expression + " }}", x="ж")
    assert all(
        mark == TEXT for char, mark in zip(str.__str__(with_text), trust_of(with_text), strict=True) if char in "<s>ж"
    )


def test_widths_are_pythons():
    assert render("{{ '<{:>3}|{!s:3}|{:.2f}>'.format('a', 'b', 1) }}") == "<  a|b  |1.00>"
    assert type(render("{{ 'a' }}")) is Trusted
    assert type(render("{{ x }}", x="a")) is str
