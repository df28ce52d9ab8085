"""Vocabularies as bytes, tokens that only a configuration names, and files that do not load."""

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from opsin_plugins.spec import SpecError
from opsin_server.text.tokenizer import Tokenizer

NAMES = ["mini", "byte-level", "metaspace", "legacy", "unigram"]


@pytest.mark.parametrize("name", NAMES)
def test_token_bytes_add_up_to_the_text(name, encoders):
    tokenizer = encoders[name].tokenizer
    text = "What is this? naïve café <b>, 12" + ("" if name == "unigram" else " 😀\n日本")
    shown = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))).decode()
    assert shown.removeprefix(" ") == text


def test_single_tokens(encoders):
    mini, meta = encoders["mini"].tokenizer, encoders["metaspace"].tokenizer
    assert mini.token_bytes(2) == b"<|im_end|>"
    assert mini.token_text(mini.encode("日")[0]) == "\ufffd"
    assert b"".join(map(mini.token_bytes, mini.encode("日"))) == "日".encode()
    assert meta.token_bytes(3 + 0x0A) == b"\n"
    assert meta.token_bytes(1) == b"<s>"
    assert {mini.token_bytes(-1), mini.token_bytes(10**6), mini.token_bytes(mini.vocab_size)} == {b""}
    assert mini.is_special(2)
    assert not mini.is_special(300)
    assert mini.vocab_size == 1536


def test_words_of_other_decoders(tmp_path):
    backend = Backend(models.BPE({"a</w>": 0, "b": 1}, [], end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder("</w>")
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).token_bytes(0) == b"a "


@pytest.mark.parametrize("name", NAMES)
def test_marker_ids_are_the_added_tokens(name, encoders, cases):
    tokenizer = encoders[name].tokenizer
    document = json.loads((cases[name].directory / "tokenizer.json").read_text())
    unknown = {"<unk>"}
    expected = {t["id"] for t in document["added_tokens"] if t["content"].strip() and t["content"] not in unknown}
    assert tokenizer.marker_ids == expected
    assert cases[name].spec.image_token in tokenizer.marker_ids


def test_characters_that_a_vocabulary_lacks_are_unknown(encoders, tools):
    """The unknown token is no marker: text gives it wherever the vocabulary has no other way."""
    without = encoders["unigram"].text_ids([tools.say("user", "a")]).count(0)
    assert encoders["unigram"].text_ids([tools.say("user", "Ω")]).count(0) == without + 1
    assert encoders["unigram"].tokenizer.encode_plain("Ω") == [0]


def test_the_placeholder_is_guarded_even_if_it_is_an_ordinary_word(tmp_path):
    backend = Backend(models.WordLevel({"<unk>": 0, "image": 1, "a": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path, guard=(1,))
    assert tokenizer.added == ("image",)
    assert tokenizer.encode("image a") == [1, 2]
    assert tokenizer.encode_plain("image a <unk>") == [0, 2, 0]


def test_a_bpe_that_ignores_its_merges_finds_no_marker(cases, tmp_path):
    document = json.loads((cases["mini"].directory / "tokenizer.json").read_text())
    document["model"]["ignore_merges"] = True
    document["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": False,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.marker_ids.isdisjoint(tokenizer.encode_plain("<|im_end|>"))
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode_plain("<|im_end|>"))) == b"<|im_end|>"


def test_merges_that_end_in_a_marker_are_dropped(tmp_path):
    backend = Backend(
        models.BPE({"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4, "<s>s": 5}, [("<", "s"), ("<s", ">"), ("<s>", "s")])
    )
    backend.add_special_tokens(["<s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).encode_plain("<s>s") == [3, 2, 1]


def test_tokens_that_only_the_configuration_names(cases, tmp_path):
    source = cases["mini"].directory / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_text(source.read_text())
    config = {"image_token": "<picture>", "extra_special_tokens": ["<extra>"], "added_tokens_decoder": {}}
    config["added_tokens_decoder"]["1536"] = {"content": "<listed>", "special": False, "normalized": False}
    tokenizer = Tokenizer(tmp_path, config)
    assert tokenizer.encode("<listed><picture><extra>") == [1536, 1537, 1538]
    assert tokenizer.vocab_size == 1539
    assert not tokenizer.is_special(1536)
    assert tokenizer.marker_ids >= {1536, 1537, 1538}
    assert tokenizer.marker_ids.isdisjoint(tokenizer.encode_plain("<listed><picture><extra>"))


def test_a_configuration_that_is_wrong_is_named(cases):
    for entries in ({"x": {"content": "<a>"}}, {"1": "<a>"}):
        with pytest.raises(SpecError, match="added_tokens_decoder"):
            Tokenizer(cases["mini"].directory, {"added_tokens_decoder": entries})


def test_truncation_and_padding_of_the_file_are_ignored(cases, tmp_path):
    backend = Backend.from_file(str(cases["mini"].directory / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).encode("What color is it?") == Tokenizer(cases["mini"].directory).encode(
        "What color is it?"
    )


def test_files_that_do_not_load(tmp_path):
    with pytest.raises(SpecError, match=r"no tokenizer\.json; copy it"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(SpecError, match=r"no tokenizer\.json.*save_pretrained"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SpecError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)


def test_a_placeholder_without_a_token_is_an_error(cases):
    with pytest.raises(SpecError, match="9999"):
        Tokenizer(cases["mini"].directory, guard=(9999,))
