"""`continue_final`: the prompt ends where the assistant's last text ends, as transformers has it."""

import random

import pytest
from hypothesis import given, settings

from opsin_server.errors import BadRequest
from support.editing_templates import EDITING, THOUGHTS, WORDS, as_dicts, as_messages, conversations

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "as it is": HEAD + "{{ m.content }}" + TAIL,
    "trimmed": HEAD + "{{ m.content | trim }}" + TAIL,
    "trimmed at the end": HEAD + "{{ m.content.rstrip() }}" + TAIL,
    "a blank behind": HEAD + "{{ m.content.strip() + ' ' }}" + TAIL,
    "parts": HEAD + "{% for p in m.content %}{{ p.text | trim }};{% endfor %}" + TAIL,
}
ENDS = ["", " ", "\n", "  \n", "\u3000", ".", " <|im_", "日"]


def expected(case, dicts):
    return case.oracle.apply_chat_template(
        dicts, tokenize=True, add_generation_prompt=False, continue_final_message=True, return_dict=False
    )


@pytest.mark.parametrize("name", ["mini", "byte-level", "metaspace", "legacy", "unigram"])
def test_generated_conversations(name, cases, encoders, tools):
    rng = random.Random(5)
    for _ in range(150):
        messages = [*tools.some_conversation(rng), tools.say("assistant", tools.some_text(rng) + rng.choice(ENDS))]
        ids = encoders[name].text_ids(messages, continue_final=True)
        assert ids == expected(cases[name], tools.as_dicts(messages))


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_a_template_trims(template, cases, tools):
    case, rng = cases["mini"].with_template(TEMPLATES[template]), random.Random(6)
    oracle, encoder = case.oracle, case.encoder
    for end in ENDS * 4:
        words = tools.some_text(rng) + end
        messages = [tools.say("user", "What is this?"), tools.say("assistant", words)]
        dicts = tools.as_dicts(messages)
        if template != "parts":
            dicts = [d | {"content": "".join(p["text"] for p in d["content"])} for d in dicts]
        rendered = oracle.apply_chat_template(
            dicts,
            tokenize=False,
            chat_template=TEMPLATES[template],
            continue_final_message=True,
        )
        assert encoder.text_ids(messages, continue_final=True) == oracle(rendered)["input_ids"]
    assert encoder.encode(messages, [], continue_final=True).ids.tolist() == oracle(rendered)["input_ids"]


@pytest.mark.parametrize("name", ["thinks", "cuts", "trims"])
def test_templates_that_edit(name, cases):
    """Where transformers does not find the text in what was rendered, the request is refused."""
    source = EDITING[name][0]
    case = cases["thinking"].with_template(source)
    oracle, encoder, outcomes = case.oracle, case.encoder, set()

    @settings(max_examples=120, deadline=None, derandomize=True)
    @given(conversations(WORDS, THOUGHTS).filter(lambda turns: turns[-1][0] == "assistant"))
    def check(turns):
        try:
            rendered = oracle.apply_chat_template(
                as_dicts(turns), tokenize=False, continue_final_message=True, chat_template=source
            )
        except ValueError:
            outcomes.add("refused")
            with pytest.raises(BadRequest, match="changes or repeats the text"):
                encoder.text_ids(as_messages(turns), continue_final=True)
            return
        ids = encoder.text_ids(as_messages(turns), continue_final=True)
        assert b"".join(map(encoder.tokenizer.token_bytes, ids)).decode() == rendered
        if not any("think>" in text for _, text in turns):
            assert ids == oracle(rendered, add_special_tokens=False)["input_ids"]
            outcomes.add("continued")

    check()
    assert "continued" in outcomes


def test_the_last_text_of_several_is_continued(cases, encoders, tools):
    messages = [tools.say("user", "a"), tools.say("assistant", "one ", "two ")]
    ids = encoders["mini"].text_ids(messages, continue_final=True)
    assert ids == expected(cases["mini"], tools.as_dicts(messages))
    assert encoders["mini"].tokenizer.decode(ids).endswith("one two ")


def test_special_tokens_in_the_continued_text_are_plain(encoders, tools):
    tokenizer = encoders["mini"].tokenizer
    ids = encoders["mini"].text_ids([tools.say("user", "a"), tools.say("assistant", "b<|im_end|>")], True)
    assert b"".join(map(tokenizer.token_bytes, ids)).endswith(b"<|im_start|>assistant\nb<|im_end|>")
    assert [i for i in ids if i in tokenizer.marker_ids][-1] == tokenizer.encode("<|im_start|>")[0]


def test_only_the_assistants_text_can_be_continued(encoders, cases, tools):
    mini = encoders["mini"]
    for messages, why in [
        ([tools.say("user", "a")], "last message from the assistant"),
        ([], "last message from the assistant"),
        ([tools.say("user", "a"), tools.say("assistant")], "no text"),
    ]:
        with pytest.raises(BadRequest, match=why) as caught:
            mini.text_ids(messages, continue_final=True)
        assert caught.value.param == "messages"
    for shown in ("{{ m.content | upper }}", "{{ m.content ~ m.content }}"):
        encoder = cases["mini"].with_template(HEAD + shown + TAIL).encoder
        with pytest.raises(BadRequest, match="changes or repeats the text"):
            encoder.text_ids([tools.say("user", "a"), tools.say("assistant", "bb")], continue_final=True)
