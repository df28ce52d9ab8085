"""Chat templates that want all the time or all the memory there is, each in its own way; and what becomes of them.

`python hostile_templates.py` runs them one by one under a limit of address space and prints a line of JSON for each.
"""

import json
import resource
import sys
import time

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"
LONG = (
    "{% set s = 'ab' * 400000 %}{% set z = 'a' * 400000 %}"
    "{% set q = 'a' * 200000 ~ 'b' %}{% set p = 'b' ~ 'a' * 200000 %}"
)
MANY = "{% set n = range(90000) | list %}{% set m = range(90000) | list %}"
EMOJI = "'\U0001f600' * 900000"
NEST = "{% set d = namespace(l=[1], t=(1,)) %}"
DOUBLE = NEST + "{% for i in range(60) %}{% set d.l = [d.l, d.l] %}{% set d.t = (d.t, d.t) %}{% endfor %}"
DEEP = NEST + "{% for i in range(60000) %}{% set d.l = [d.l] %}{% set d.t = (d.t,) %}{% endfor %}"

SECONDS = 0.1  # of CPU time for each: a fifth of what they have in a server, so that all are done in a few seconds


def forever(body: str, before: str = "") -> str:
    return before + LOOP.replace("BODY", body)


OUTPUT = {
    "output": forever("x" * 50),
    "macro": LONG + "{% macro f() %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endmacro %}{{ f() }}",
    "set block": LONG + "{% set x %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endset %}",
    "joined macros": "{% macro f(n) %}{% if n %}{% set _ = f(n - 1) ~ f(n - 1) %}{% endif %}{% endmacro %}{{ f(60) }}",
    "doubling": "{% set n = namespace(s='xx') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "adding": "{% set n = namespace(s='xx') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "repeating": "{{ ('x' * 90000) * 90000 }}",
    "joined": "{{ (['x' * 9000] * 9000) | join }}",
    "joined by": "{{ range(90000) | list | join('x' * 90000) }}",
    "joined by letters": "{{ ('x' * 90000).join('y' * 90000) }}",
    "joined one by one": "{{ range(99999) | map('string') | join('x' * 90000) }}",
    "replaced": "{{ ('a' * 1000000) | replace('a', 'b' * 1000) }}",
    "replaced by a method": "{{ ('a' * 1000000).replace('a', 'b' * 1000) }}",
    "replaced between": "{{ ('a' * 1000000).replace('', 'b' * 1000) }}",
    "indented": "{{ ('\n' * 100000) | indent(100000) }}",
    "indented by a text": "{{ ('a\n' * 100000) | indent('x' * 100000) }}",
    "varargs": "{% macro f() %}{{ varargs }}{% endmacro %}{% set x = 'x' * 900000 %}{{ f(" + "x, " * 200 + "x) }}",
    "kept for a cycle": "{% set x = 'x' * 900000 %}{{ cycler(" + "x, " * 200 + "x).items | string | length }}",
}
WIDTHS = {
    "%d": "{{ '%99999999d' % 1 }}",
    "%f": "{{ '%.99999999f' % 1.5 }}",
    "% filter": "{{ '%999999999s' | format('x') }}",
    "% often": "{% set f = '%(a)s' * 100000 %}{{ f % {'a': 'x' * 900000} }}",
    "{}": "{{ '{:99999999}'.format(1) }}",
    "{} digits": "{{ '{:.99999999f}'.format(1.5) }}",
    "{} nested": "{{ '{:{w}}'.format(1, w=999999) }}",
    "{} often": "{% set f = '{a}' * 100000 %}{{ f.format(a='x' * 900000) }}",
    "ljust": "{{ 'x'.ljust(10 ** 10) }}",
    "rjust": "{{ 'x'.rjust(10 ** 9) }}",
    "center": "{{ 'x' | center(10000000000) }}",
    "zfill": "{{ 'x'.zfill(10 ** 9) }}",
    "center again": forever("{% set _ = s.center(1000000) %}", LONG),
    "zfill again": forever("{% set _ = 'x'.zfill(1000000) %}"),
    "tojson": "{{ range(90000) | list | tojson(indent=1000000) }}",
    "tojson text": "{{ range(90000) | list | tojson(indent='x' * 90000) }}",
    "tojson separators": "{{ range(90000) | list | tojson(separators=('x' * 90000, 'y')) }}",
    "batch": "{{ [1] | batch(1000000, 'x' * 900000) | first }}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "range of a million": "{% for i in range(10 ** 6) %}{% endfor %}",
    "strftime": "{{ strftime_now('%9999999d' * 1000) }}",
}
LISTS = {
    "lists": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "of lists": NEST + "{% for i in range(9999) %}{% set d.l = d.l + [range(9000) | list] %}{% endfor %}",
    "doubling, as JSON": DOUBLE + "{{ d.l | tojson }}",
    "doubling, printed": DOUBLE + "{{ d.l }}",
    "doubling, as a key": DOUBLE + "{{ {d.t: 1} }}",
    "doubling, compared": DOUBLE + "{{ d.l == d.l + [] }}",
    "deep, printed": DEEP + "{{ d.l }}",
    "deep, as a key": DEEP + "{{ {d.t: 1} }}",
    "deep, as JSON": DEEP + "{{ d.l | tojson }}",
    "many kept": "".join(f"{{% set v{i} = range(90000) | list %}}" for i in range(500)),
    "dictionaries": forever("{% set _ = dict(n | batch(2)) %}", MANY),
    "items": forever("{% set _ = d.items() | list %}", "{% set d = dict(range(90000) | batch(2)) %}"),
    "sorted": forever("{% set _ = n | sort(reverse=true) %}", MANY),
    "sorted by": forever("{% set _ = n | sort(attribute='x') %}", MANY),
    "unique": forever("{% set _ = n | unique | list %}", MANY),
    "grouped": forever("{% set _ = n | groupby('real') %}", MANY),
    "largest": forever("{% set _ = n | max %}", MANY),
    "batches": forever("{% set _ = n | batch(1000) | list %}", MANY),
    "slices": forever("{% set _ = n | slice(1000000) | list %}", MANY),
    "reversed": forever("{% set _ = n | reverse | list %}", MANY),
    "sums of lists": forever("{% set _ = l | sum(start=[]) %}", "{% set l = [[1] * 100] * 900 %}"),
    "letters": forever("{% set _ = z[:90000] | list %}", LONG),
    "letters as arguments": forever("{% set _ = cycler(*z) %}", LONG),
}
TIME = {
    "silence": forever(""),
    "assignment": forever("{% set x = i * j %}"),
    "filters": forever("{{ range(9999) | map('string') | map('length') | sum }}"),
    "in a list": forever("{% if -1 in n %}{% endif %}", MANY),
    "in a list, written out": MANY + "{% if -1 in n %}{% endif %}" * 2000,
    "equal, written out": MANY + "{% if n == m %}{% endif %}" * 2000,
    "equal, in one expression": MANY + "{{ " + " and ".join(["n == m"] * 180) + " }}" + forever(""),
    "a test, written out": MANY + "{% set x = -1 is in(n) %}" * 2000,
    "a test in a filter": forever("{% set _ = range(99999) | select('in', n) | list %}", MANY),
    "a loop's condition": MANY + "{% for i in range(99999) if -1 in n %}{% endfor %}",
    "a text in a text": LONG + "{% for i in range(99999) if p in z %}{% endfor %}",
    "find": forever("{% set _ = z.find(q) %}", LONG),
    "count": forever("{% set _ = z.count(q) %}", LONG),
    "rfind": forever("{% set _ = z.rfind(p) %}", LONG),
    "rindex": LONG + "{{ z.rindex(p) }}",
    "rsplit": LONG + "{{ z.rsplit(p) }}",
    "rpartition": LONG + "{{ z.rpartition(p) }}",
    "strip": LONG + "{{ z.strip('b' * 200000 ~ 'a') }}",
    "trim": LONG + "{{ z | trim('b' * 200000 ~ 'a') }}",
    "split": forever("{% set _ = s[:90000].split('a') %}", LONG),
    "splitlines": forever("{% set _ = ('\n' * 90000).splitlines() %}"),
    "title": forever("{% set _ = s | title %}", LONG),
    "upper": forever("{% set _ = s.upper() %}", LONG),
    "truncate": forever("{% set _ = s | truncate(999999, end='x' * 9999) %}", LONG),
    "words": forever("{{ ('a ' * 400000) | wordcount }}"),
    "each letter": forever("{% for c in z %}{% endfor %}", LONG),
    "JSON": forever("{% set _ = n | tojson(indent=9) %}", MANY),
}
NUMBERS = {
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set n = namespace(s=3) %}{% for i in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "threes": "{% set n = namespace(x=3) %}{% for i in range(99999) %}{% set n.x = n.x * 3 %}{% endfor %}",
    "hexadecimal": "{% set b = ('f' * 900000) | int(base=16) %}{{ b % 7 }}",
    "decimal": forever("{% set b = ('9' * 900000) | int %}"),
    "rounded": "{{ 1.5 | round(1000000) }}",
    "rounded down": "{{ 1.5 | round(300000, 'floor') }}",
}
MEMORY = {
    "texts kept": "".join(f"{{% set v{i} = {EMOJI} ~ 'x' %}}" for i in range(500)),
    "parts kept": "{% set s = " + EMOJI + " %}" + "".join(f"{{% set v{i} = s[{i}:] %}}" for i in range(500)),
    "kept by macros": "{% macro f(n, s) %}{% set t = s ~ 'x' %}{% set u = t ~ 'x' %}"
    "{% if n %}{{ f(n - 1, u) }}{% endif %}{% endmacro %}{{ f(150, " + EMOJI + ") }}",
}
REFUSED = {
    "encode": "{{ 'x'.encode() * 10 }}",
    "expandtabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000}) }}",
    "to_bytes": "{{ (5).to_bytes(1000000) }}",
    "fromkeys": "{{ dict.fromkeys(range(99999), 'x' * 900000) }}",
    "a block": "{% block b %}x{% endblock %}{{ self.b() }}",
    "%*d": "{{ '%*d' % (99999999, 1) }}",
}
HOSTILE = {
    f"{kind}: {name}": source
    for kind, sources in {
        "output": OUTPUT,
        "widths": WIDTHS,
        "lists": LISTS,
        "time": TIME,
        "numbers": NUMBERS,
        "memory": MEMORY,
        "refused": REFUSED,
    }.items()
    for name, source in sources.items()
}


def main() -> None:
    from opsin_server.text import template_budget as budget
    from opsin_server.text.sandbox import Program

    budget.MAX_SECONDS = SECONDS
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    for name, source in HOSTILE.items():
        program, start = Program(source), time.thread_time()
        try:
            error = f"finished: {len(program.run({'messages': []}))} characters"
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024
        told = {"name": name, "error": error, "cpu": time.thread_time() - start, "grown": grown}
        sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
