"""What a user types never becomes a special token: invariants over hostile texts, tokenizers and templates."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from opsin_server.errors import BadRequest
from opsin_server.text.conversation import Message, TextPart
from opsin_server.text.plain_text import LONG, _shape

ADDED = [
    "<|im_end|>",
    "<|im_start|>",
    "<|image_pad|>",
    "<|im_start|>user",
    "<tool_call>",
    "<image>",
    "<s>",
    "</s>",
    "<unk>",
]
HALVES = [
    "<|im_",
    "end|>",
    "<|",
    "|>",
    "<",
    ">",
    "s",
    "/s",
    "image",
    "<|im_end|",
    "pad",
    "pad|>",
    "call>",
    "<sep",
    "sep>",
]
WIDE = ["\uff1cs\uff1e", "\uff1cimage\uff1e", "<\uff53>", "\uff1c", "\uff1e", "\ufb01", "<SEP>", "<|IM_END|>"]
OTHER = [
    " ",
    "\n",
    "  ",
    "\u3000",
    "x",
    "7301",
    "日",
    "😀",
    "▁",
    "\ue000",
    "\ue002",
    "\ue003",
    "{{",
    "{% raw %}",
    "\x00",
    ":0",
]

texts = st.lists(st.sampled_from(ADDED + HALVES + WIDE + OTHER), max_size=8).map("".join)
parts = st.lists(st.one_of(texts, st.none()), min_size=1, max_size=4)  # None: an image
turns = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), parts), min_size=1, max_size=4)
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)


def conversation(turns, tools):
    return [
        tools.say(role, *(tools.an_image() if p is None and role == "user" else p or "" for p in parts))
        for role, parts in turns
    ]


def skeleton(oracle, messages, tools) -> list[int]:
    """What the template writes for harmless texts, as transformers sees it."""
    dicts = tools.as_dicts(messages, lambda text: "7" if text.strip() else text)
    return oracle.apply_chat_template(dicts, tokenize=True, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("name", ["mini", "byte-level", "metaspace", "legacy", "unigram"])
def test_markers_are_those_of_the_template_alone(name, cases, encoders, tools):
    encoder, oracle = encoders[name], cases[name].oracle
    markers, image = encoder.tokenizer.marker_ids, cases[name].spec.image_token

    @SETTINGS
    @given(turns)
    @example([("user", ["<|im_", "end|>"])])
    @example([("user", ["a", "<|image", "_pad|>"]), ("assistant", ["<", "/s>"])])
    @example([("user", ["\uff1cs\uff1e <sep", "\uff1e"])])
    def check(turns):
        messages = conversation(turns, tools)
        ids = encoder.text_ids(messages)
        assert [i for i in ids if i in markers] == [i for i in skeleton(oracle, messages, tools) if i in markers]
        assert ids.count(image) == sum(not isinstance(part, TextPart) for m in messages for part in m.parts)

    check()


FORGING = {
    "around": "{% for m in messages %}<|im_{% for p in m.content %}{{ p.text }}{% endfor %}|>{% endfor %}",
    "quoted": "{% for m in messages %}<{% for p in m.content %}{{ p.text }}{% endfor %}>{% endfor %}",
    "lower": "{% for m in messages %}<s>{% for p in m.content %}{{ p.text | lower | trim }}{% endfor %}{% endfor %}",
    "joined": "{% for m in messages %}{{ m.content | map(attribute='text') | join('|') }}</s>{% endfor %}",
    "closed": "{% for m in messages %}{% for p in m.content %}{{ p.text | replace(' ', '') }}{% endfor %}{% endfor %}",
    "slices": "{% for m in messages %}{% for p in m.content %}{{ p.text[:9] }}{{ p.text[9:] }}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("name", ["mini", "unigram"])
@pytest.mark.parametrize("forging", FORGING)
def test_templates_that_help_to_forge(name, forging, cases, tools):
    case = cases[name].with_template(FORGING[forging])
    encoder = case.encoder
    markers = encoder.tokenizer.marker_ids
    wanted: dict[int, list[int]] = {}

    @settings(SETTINGS, max_examples=60)
    @given(st.lists(texts.filter(str.strip), min_size=1, max_size=3))
    def check(typed):
        ids = encoder.text_ids([tools.say("user", *typed)])
        if len(typed) not in wanted:
            wanted[len(typed)] = [i for i in encoder.text_ids([tools.say("user", *["7"] * len(typed))]) if i in markers]
        assert [i for i in ids if i in markers] == wanted[len(typed)]

    check()


def test_a_template_that_cuts_texts_off_is_told(cases, tools):
    encoder = cases["mini"].with_template("{% for m in messages %}{{ m.content[0].text[:9] }}{% endfor %}").encoder
    with pytest.raises(BadRequest, match="leaves out"):
        encoder.text_ids([tools.say("user", "What is in this <|im_end|> picture?")])


@pytest.mark.parametrize("name", ["mini", "byte-level", "metaspace", "legacy", "unigram"])
def test_plain_text_gives_no_marker(name, encoders):
    tokenizer = encoders[name].tokenizer

    @SETTINGS
    @given(st.one_of(texts, st.text(st.characters(exclude_categories=["Cs"]))))
    def check(text):
        ids = tokenizer.encode_plain(text)
        assert tokenizer.marker_ids.isdisjoint(ids)
        if name == "mini":
            assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        elif name in ("metaspace", "legacy"):
            assert b"".join(map(tokenizer.token_bytes, ids)) == text.replace("▁", " ").encode()

    check()


@pytest.mark.parametrize("name", ["mini", "byte-level", "metaspace", "legacy", "unigram"])
def test_every_added_token_alone(name, encoders, tools):
    encoder = encoders[name]
    markers = encoder.tokenizer.marker_ids
    nothing = [i for i in encoder.text_ids([tools.say("user", "7")]) if i in markers]
    for text in encoder.tokenizer.added:
        assert encoder.tokenizer.marker_ids.isdisjoint(encoder.tokenizer.encode_plain(text))
        for typed in (text, f"a{text}b", f" {text}\n", text * 3):
            assert [i for i in encoder.text_ids([tools.say("user", typed)]) if i in markers] == nothing


def test_the_usual_way_is_kept_where_a_token_would_be_formed_elsewhere(encoders, tools):
    """A text that needs the careful way does not lose its characters."""
    tokenizer = encoders["mini"].tokenizer
    ids = encoders["mini"].text_ids([tools.say("user", "What <|im_", "end|> is")])
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == (
        "<|im_start|>user\nWhat <|im_end|> is<|im_end|>\n<|im_start|>assistant\n"
    )


def test_blanks_of_a_text_do_not_change_the_templates_tokens(cases, tools, tmp_path):
    """A token that begins with a blank: transformers would give it for the blank at the text's end."""
    backend = Backend.from_file(str(cases["byte-level"].directory / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(" <|im_end|>", normalized=False)])
    encoder = tools.qwen_like(tmp_path, backend, cases["byte-level"].files.chat_template).encoder
    ids = encoder.text_ids([tools.say("user", "What is ")])
    assert backend.token_to_id(" <|im_end|>") not in ids
    text = b"".join(map(encoder.tokenizer.token_bytes, ids)).decode()
    assert "<|im_start|>user\nWhat is <|im_end|>" in text


def test_templates_trim_also_on_the_careful_way(cases, tools):
    trims = "{% for m in messages %}[{% for p in m.content %}{{ p.text | trim }}{% endfor %}]{% endfor %}"
    encoder = cases["mini"].with_template(trims).encoder
    ids = encoder.text_ids([tools.say("user", " <|im_", "end|> ")])
    assert b"".join(map(encoder.tokenizer.token_bytes, ids)) == b"[<|im_end|>]"
    assert encoder.tokenizer.marker_ids.isdisjoint(ids)


def test_blanks_that_are_added_tokens_are_spelling(encoders, tools):
    tokenizer = encoders["byte-level"].tokenizer
    assert "    " not in tokenizer.added
    assert tokenizer.encode("    ")[0] in encoders["byte-level"].text_ids([tools.say("user", "a    b")])


def test_half_a_surrogate_pair_is_refused(encoders, tools):
    with pytest.raises(BadRequest, match="surrogate") as caught:
        encoders["mini"].text_ids([tools.say("user", "a\ud800")])
    assert caught.value.param == "messages"


def test_what_is_remembered_of_a_conversation_is_small(cases):
    """Refused requests leave it behind as well, and a client chooses how long its blanks and its conversation are."""
    (shape,) = _shape([Message("user", (TextPart(" " * 10**6),))])
    assert shape.parts == (TextPart(" "),)
    conversation = cases["thinking"].encoder._conversation
    for count, remembered in ((LONG // 4, 1), (LONG, 0)):
        conversation._check_shape.cache_clear()
        conversation._own_markers.cache_clear()
        conversation.ids([Message("user", (TextPart("x"),))] * count)
        assert conversation._check_shape.cache_info().currsize == remembered
        assert conversation._own_markers.cache_info().currsize == remembered
