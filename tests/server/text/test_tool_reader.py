"""Answers with calls in them, cut anywhere: the same text and calls come out, as soon as they are certain."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin_server.text.json_scanner import JsonScanner
from opsin_server.text.tool_format import CALL_ID, SPELLED, ToolFormat
from opsin_server.text.tool_reader import ToolCallReader

HERMES = SPELLED
LLAMA = ToolFormat("object", '{"name": "', '", "parameters": ', "", "}", "", "parameters")
NEMO = ToolFormat(
    "object",
    '[TOOL_CALLS][{"name": "',
    '", "arguments": ',
    f', "id": "{CALL_ID}"}}, {{"name": "',
    f', "id": "{CALL_ID}"}}]',
    "[TOOL_CALLS]",
    short_ids=True,
)
DEVSTRAL = ToolFormat("named", "[TOOL_CALLS]", "[ARGS]", "[TOOL_CALLS]", "", "[TOOL_CALLS]")
SMALL = replace(DEVSTRAL, middle=f"[CALL_ID]{CALL_ID}[ARGS]")
KIMI = ToolFormat("named", "<|calls|><|call|>", ":0<|args|>", "<|end|><|call|>", "<|end|><|done|>", "<|calls|><|call|>")
PYTHONIC = ToolFormat("pythonic", "[", "(", "), ", ")]", "")
LFM = ToolFormat("pythonic", "<|start|>[", "(", "), ", ")]<|stop|>", "<|start|>[")
KNOWN = ("look", "add")

AT = '{"at": "a \\"cat\\" }]"}'
SUM = '{"a": [1, 2], "b": {"c": null}}'
ONE = [("look", {"at": 'a "cat" }]'})]
TWO = [*ONE, ("add", {"a": [1, 2], "b": {"c": None}})]
HERMES_LOOK = f'<tool_call>\n{{"name": "look", "arguments": {AT}}}\n</tool_call>'
HERMES_ADD = f'<tool_call>\n{{"name": "add", "arguments": {SUM}}}\n</tool_call>'
LLAMA_LOOK, LLAMA_ADD = (f'{{"name": "{n}", "parameters": {a}}}' for n, a in (("look", AT), ("add", SUM)))
NEMO_LOOK, NEMO_ADD = (
    f'{{"name": "{n}", "arguments": {a}, "id": "abc}}def12"}}' for n, a in (("look", AT), ("add", SUM))
)

WRITTEN = [
    (HERMES, HERMES_LOOK, "", ONE),
    (HERMES, f"I look.\n\n{HERMES_LOOK}\n{HERMES_ADD}\n", "I look.", TWO),
    (HERMES, f'<tool_call>{{"arguments":{AT},"name":"look"}}</tool_call>', "", ONE),
    (HERMES, f'<tool_call>{{"name":"look","arguments":{json.dumps(AT)}}}</tool_call>', "", ONE),
    (HERMES, f"{HERMES_LOOK} So.", "So.", ONE),
    (LLAMA, LLAMA_LOOK, "", ONE),
    (LLAMA, f"\n{LLAMA_LOOK}; {LLAMA_ADD}", "", TWO),
    (NEMO, f"[TOOL_CALLS] [{NEMO_LOOK}, {NEMO_ADD}]", "", TWO),
    (NEMO, f"[TOOL_CALLS][{NEMO_LOOK}]", "", ONE),
    (DEVSTRAL, f"[TOOL_CALLS]look[ARGS]{AT}[TOOL_CALLS]add[ARGS]{SUM}", "", TWO),
    (SMALL, f"[TOOL_CALLS]look[CALL_ID]abcdef123[ARGS]{AT}", "", ONE),
    (KIMI, f"<|calls|><|call|>look:0<|args|>{AT}<|end|><|call|>add:0<|args|>{SUM}<|end|><|done|>", "", TWO),
    (PYTHONIC, "[look(at='a \"cat\" }]'), add(a=[1, 2], b={'c': None})]", "", TWO),
    (LFM, "Yes. <|start|>[look(at='a \"cat\" }]')]<|stop|>", "Yes.", ONE),
]
TEXTS = [
    (HERMES, "There is no <tool or <tool_cal here.\n"),
    (HERMES, "<tool_call>\nnot JSON at all\n</tool_call>"),
    (LLAMA, 'Look: {"name": "look", "parameters": {}}'),
    (LLAMA, '{"name": "Ann", "parameters": {"age": 3}}'),
    (LLAMA, '{"shape": "circle"}'),
    (PYTHONIC, "[1, 2, 3]"),
    (PYTHONIC, "[cat(1)]"),
    (PYTHONIC, "[other(a=1)]"),
    (DEVSTRAL, "[TOOL_CALLS]look at this"),
]


def read(form: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    ids = iter(range(100))
    reader = ToolCallReader(form, lambda: f"id{next(ids)}", KNOWN)
    text, calls = "", []
    for piece in [*map(reader.push, pieces), reader.finish()]:
        text += piece.text
        for delta in piece.calls:
            if delta.name is not None:
                assert delta.index == len(calls)
                assert delta.id == f"id{delta.index}"
                calls.append((delta.name, ""))
            name, arguments = calls[delta.index]
            calls[delta.index] = name, arguments + delta.arguments
    assert reader.count == len(calls)
    return text, calls


@pytest.mark.parametrize(("form", "written", "text", "calls"), WRITTEN)
def test_calls_are_read_however_the_text_is_cut(form, written, text, calls) -> None:
    expected = text, calls
    for pieces in ([written], list(written), [written[i : i + 7] for i in range(0, len(written), 7)]):
        found = read(form, pieces)
        assert (found[0].strip(), [(name, json.loads(arguments)) for name, arguments in found[1]]) == expected


@pytest.mark.parametrize(("form", "written"), TEXTS)
def test_what_only_looks_like_a_call_is_text(form: ToolFormat, written: str) -> None:
    for pieces in ([written], list(written)):
        text, calls = read(form, pieces)
        assert text == written
        assert not calls


def test_arguments_come_while_they_are_written() -> None:
    reader = ToolCallReader(HERMES, lambda: "x", KNOWN)
    reader.push('<tool_call>\n{"name": "look", "arguments": {"at": "')
    assert [delta.arguments for delta in reader.push("a long").calls] == ["a long"]
    assert [delta.arguments for delta in reader.push(" text").calls] == [" text"]


@pytest.mark.parametrize("cut", range(0, 75, 3))
def test_an_answer_that_was_cut_gives_what_there_is(cut: int) -> None:
    written = WRITTEN[0][1][:cut]
    text, calls = read(HERMES, list(written))
    if calls:
        assert calls[0][0] == "look"
        assert calls[0][1] in written
        assert not text
    else:
        assert written.startswith(text[:20])


@pytest.mark.parametrize(("form", "written"), [(one[0], one[1]) for one in WRITTEN[:-2]])
def test_it_is_known_whether_the_arguments_of_the_last_call_were_cut(form: ToolFormat, written: str) -> None:
    for end in range(len(written) + 1):
        reader = ToolCallReader(form, lambda: "x", KNOWN)
        found = [*reader.push(written[:end]).calls, *reader.finish().calls]
        arguments = "".join(delta.arguments for delta in found if delta.index == reader.count - 1)
        assert reader.cut == (bool(reader.count) and not is_json(arguments)), arguments


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_an_answer_of_nothing_but_calls_has_no_text() -> None:
    for cut in range(len(HERMES_LOOK)):
        reader = ToolCallReader(HERMES, lambda: "x", KNOWN, only_calls=True)
        assert not reader.push(HERMES_LOOK[:cut]).text
        assert not reader.finish().text


@given(st.sampled_from([form for form, *_ in WRITTEN]), st.text("<tol_cal>{}[]\"\\namergus:, ('=)\n", max_size=60))
def test_no_answer_is_too_strange(form: ToolFormat, answer: str) -> None:
    assert read(form, list(answer)) == read(form, [answer]) or form.kind == "pythonic"
    text, calls = read(form, [form.opener + answer])
    assert calls or text.strip() in (form.opener + answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.integers(1, 5))
def test_a_value_ends_where_it_ends(value, size: int) -> None:
    text = json.dumps(value)
    scanner, taken = JsonScanner(), 0
    rest = text + " , more"
    for start in range(0, len(rest), size):
        found = scanner.take(rest[start : start + size])
        if found is not None:
            taken = start + found
            break
    assert taken == len(text)
