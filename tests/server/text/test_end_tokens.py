"""Every place that knows what ends an answer counts: configuration, tokenizer, chat template."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from opsin_server.text.encode_prompt import PromptEncoder

END = "<|im_end|>"


def ends(case: Any, **names: str) -> list[str]:
    """The strings of the tokens. names: what tokenizer_config.json says."""
    kept = {k: v for k, v in case.files.tokenizer_config.items() if not k.endswith("_token")}
    files = replace(case.files, tokenizer_config={**kept, **names})
    encoder = PromptEncoder(files, case.architecture, case.spec)
    return [encoder.tokenizer.token_text(i) for i in encoder.ends]


@pytest.fixture(scope="module")
def case(cases: dict[str, Any]) -> Any:
    made = cases["byte-level"]
    return replace(made, spec=replace(made.spec, eos=()))


def test_the_template_names_the_end_of_a_turn(case: Any) -> None:
    assert ends(case) == [END]


def test_the_tokenizer_alone_knows_it(case: Any) -> None:
    plain = (
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{{ p['text'] }}{% endfor %}\n{% endfor %}"
    )
    assert ends(case.with_template(plain)) == []
    assert ends(case.with_template(plain), eos_token=END) == [END]
    assert ends(case.with_template(plain), eos_token="<not there>") == []


def test_all_are_added_up_each_once(case: Any) -> None:
    start = case.encoder.tokenizer.token_id("<|im_start|>")
    configured = replace(case, spec=replace(case.spec, eos=(start, -1)))  # (-1: some programs' word for none)
    assert ends(configured, eos_token=END) == ["<|im_start|>", END]


def test_the_oldest_chatml_writes_it_between_messages_alone(case: Any) -> None:
    template = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']}}"
        "{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>' + '\n'}}{% endif %}"
        "{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert ends(case.with_template(template)) == [END]


@pytest.mark.parametrize("behind", [" " + END, "\n" + END + "\n"])
def test_blanks_before_the_end_do_not_hide_it(case: Any, behind: str) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
        "{{ END }}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    assert ends(case.with_template(template.replace("END", repr(behind)))) == [END]


def test_text_behind_an_answer_is_no_end(case: Any) -> None:
    template = (
        "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %} and <|im_end|>{% endfor %}"
    )
    assert ends(case.with_template(template)) == []


def test_a_sentencepiece_end(cases: dict[str, Any]) -> None:
    case = cases["metaspace"]
    assert case.encoder.tokenizer.token_id("</s>") in case.encoder.ends
