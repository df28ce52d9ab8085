"""Templates and tokenizers of composed models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import ImageBudget
from opsin_server.compose.command import Request, compose
from opsin_server.compose.placeholder import PICTURES_FIRST
from opsin_server.text.conversation import ImagePart, Message, TextPart
from opsin_server.text.encode_prompt import PromptEncoder
from support import halves, oracle
from support.halves import HalfModel

IMAGE = ImagePart("", ImageBudget(), "")
TALK = [
    Message("system", (TextPart("Be brief."),)),
    Message("user", (TextPart("a"), IMAGE, TextPart("b"), IMAGE)),
    Message("assistant", (TextPart("c"),)),
    Message("user", (TextPart("d"),)),
]
OWN = "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}"
OWN += "{{ p.text }}{% endif %}{% endfor %};{% endfor %}"
SHOWN = "[system] Be brief.[user] <image>\n<image>\nab[assistant] c[user] d[assistant]"
VICUNA = "Be brief. USER: <image>\n<image>\na b ASSISTANT: c USER: d ASSISTANT:"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> HalfModel:
    return halves.encoder("clip", tmp_path_factory.mktemp("clip"))


def encoder_of(directory: Path) -> PromptEncoder:
    files = read_model_files(directory)
    architecture = Registry().architecture(files)
    return PromptEncoder(files, architecture, architecture.spec(files))


TEMPLATES = [
    (halves.CHAT, "the language model's own, pictures put first in a turn", SHOWN),
    (OWN, "the language model's own\n", "system:Be brief.;user:a<image>b<image>;assistant:c;user:d;"),
    (None, "LLaVA's, since the language model has none", VICUNA),
]


@pytest.mark.parametrize(("template", "what", "shown"), TEMPLATES)
def test_the_template_that_shows_pictures(template, what, shown, clip, tmp_path) -> None:
    language = halves.language("llama", tmp_path / "language", template=template)
    report = compose(Request(clip.directory, language.directory, tmp_path / "out"))
    assert f"chat template  {what}" in report
    assert encoder_of(tmp_path / "out").template.render(TALK) == shown


def test_text_alone_reads_as_the_language_model_reads_it(clip, tmp_path) -> None:
    """Blanks at a template's start, and turns without content, as tools write them."""
    template = "\n  {{ bos_token }}" + halves.CHAT
    language = halves.language("llama", tmp_path / "language", template=template)
    compose(Request(clip.directory, language.directory, tmp_path / "out"))
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": None}]
    one, other = (PreTrainedTokenizerFast.from_pretrained(d) for d in (language.directory, tmp_path / "out"))
    assert other.apply_chat_template(talk, tokenize=False) == one.apply_chat_template(talk, tokenize=False)
    assert encoder_of(tmp_path / "out").text_ids(TALK[3:]) == encoder_of(language.directory).text_ids(TALK[3:])
    assert (tmp_path / "out/chat_template.jinja").read_text() == PICTURES_FIRST + template


def test_transformers_processor_makes_the_same_prompt(clip, tmp_path) -> None:
    language = halves.language("llama", tmp_path / "language")
    compose(Request(clip.directory, language.directory, tmp_path / "out"))
    saved = json.loads((tmp_path / "out/processor_config.json").read_text())
    saved.pop("processor_class")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    images = CLIPImageProcessorPil.from_pretrained(tmp_path / "out")
    processor = LlavaProcessor(images, tokenizer, **saved)
    encoder, pictures = encoder_of(tmp_path / "out"), [oracle.picture(i, 30, 50) for i in (1, 2)]
    inputs = processor(images=pictures, text=encoder.template.render(TALK), return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == encoder.encode(TALK, pictures).ids.tolist()
    assert tokenizer.image_token == "<image>"


def test_tokens_that_only_the_configuration_names_keep_their_ids(clip, tmp_path) -> None:
    """They are added before the placeholder, as every reader of the language model adds them."""
    language = halves.language("llama", tmp_path / "language", vocab_size=152)
    config = language.directory / "tokenizer_config.json"
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    listed = {"added_tokens_decoder": {"151": {"content": "<extra>", **flags}}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **listed}))
    report = compose(Request(clip.directory, language.directory, tmp_path / "out"))
    assert "token 152, added" in report
    ids = encoder_of(tmp_path / "out").tokenizer.encode("<extra><image>")
    assert ids == [*encoder_of(language.directory).tokenizer.encode("<extra>"), 152] == [151, 152]
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<image>") == 152
