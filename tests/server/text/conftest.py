"""What the prompt tests share: tokenizers trained on the spot, each as a model directory, and conversations."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

import opsin_server
from opsin_plugins.families.architectures.llava import Llava
from opsin_plugins.families.architectures.qwen2_vl import Qwen2VL
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.spec import ImageBudget, ModelFiles, ModelSpec
from opsin_server.text.conversation import ImagePart, Message, TextPart
from opsin_server.text.encode_prompt import PromptEncoder

MINI = Path(opsin_server.__file__).parent / "models" / "opsin-mini"

CORPUS = [
    "What is in this picture? A red circle and two blue squares, above a green triangle.",
    "Describe the images one by one: the first shows a cat, the second shows a dog.",
    "Übermäßig viele Äpfel; naïve café, 12 345,67 € «voilà»",
    "日本語の文章と中文句子 и немного русского текста",
    "def main(): return {'a': [1, 2, 3]}  # <b>bold</b> | pipes | <html>",
] * 4

# In the manner of Qwen2: a default system turn, images where they stand.
CHATML = """\
{%- set count = namespace(images=0) -%}
{%- if messages[0].role != 'system' -%}<|im_start|>system
Be brief.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{%- set count.images = count.images + 1 -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""

# In the manner of LLaVA: images first, names in capitals, no list where a string stands.
VICUNA = """\
{% for message in messages %}
{% if message['role'] != 'system' %}{{ message['role'] | upper ~ ': ' }}{% endif %}
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ part['text'] + eos_token }}{% endgeneration %}
{%- else %}{{ part['text'] + ' ' }}
{%- endif -%}
{% endfor %}
{% endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}
"""


def special(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def byte_level() -> Backend:
    tokenizer = Backend(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer.add_special_tokens(special(*marks, "<|im|>", "<|im_start|>user"))
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("    ", normalized=False)])
    return tokenizer


def thinking() -> Backend:
    """As Qwen3 has it: the marks around a thought are added tokens, but no special ones."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer


def metaspace(legacy: bool = False) -> Backend:
    """As Llama has it: blanks written as U+2581, bytes for what is missing, special tokens in the model too."""
    tokenizer = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    document = json.loads(tokenizer.to_str())
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    document["model"]["vocab"] = {text: i for i, text in enumerate([*first, *document["model"]["vocab"]])}
    tokenizer = Backend.from_str(json.dumps(document))
    if legacy:
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>", "<image>", "<pad>"))
    return tokenizer


def unigram() -> Backend:
    """Its model finds its special tokens in any text, and normalisation makes them from other letters."""
    tokenizer = Backend(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special("<image>"))
    tokenizer.add_special_tokens([AddedToken("<sep>", special=True, normalized=True)])
    return tokenizer


@dataclass(frozen=True)
class Case:
    """extra: text that, in front of a piece, keeps the tokenizer from adding a blank; its own ids are then dropped."""

    directory: Path
    files: ModelFiles
    architecture: Qwen2VL | Llava
    spec: ModelSpec
    extra: str = ""

    @property
    def oracle(self) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast.from_pretrained(self.directory)

    @property
    def encoder(self) -> PromptEncoder:
        return PromptEncoder(self.files, self.architecture, self.spec)

    def with_template(self, source: str) -> "Case":
        return replace(self, files=replace(self.files, chat_template=source))


def qwen_like(directory: Path, backend: Backend, template: str, **names: str) -> Case:
    """A Qwen2-VL of opsin-mini's sizes over another tokenizer."""
    config = json.loads((MINI / "config.json").read_text())
    config["image_token_id"] = backend.token_to_id("<|image_pad|>")
    config["text_config"]["vocab_size"] = backend.get_vocab_size()
    preprocessor = json.loads((MINI / "preprocessor_config.json").read_text())
    return _case(directory, backend, template, config, preprocessor, Qwen2VL(), names)


def llava_like(directory: Path, backend: Backend, template: str, **names: str) -> Case:
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"intermediate_size": 64, "image_size": 28, "patch_size": 14}
    text = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"intermediate_size": 64, "vocab_size": backend.get_vocab_size(), "max_position_embeddings": 512}
    config = {"model_type": "llava", "text_config": text, "vision_config": vision}
    config["image_token_index"] = backend.token_to_id("<image>")
    preprocessor = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    return replace(_case(directory, backend, template, config, preprocessor, Llava(), names), extra="\n")


def _case(directory, backend, template, config, preprocessor, architecture, names) -> Case:
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    (directory / "chat_template.jinja").write_text(template)
    files = ModelFiles(directory, config, preprocessor, tokenizer_config=named, chat_template=template)
    return Case(directory, files, architecture, architecture.spec(files))


@pytest.fixture(scope="session")
def cases(tmp_path_factory) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("models")
    mini = read_model_files(MINI)
    llama = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "mini": Case(MINI, mini, Qwen2VL(), Qwen2VL().spec(mini)),
        "byte-level": qwen_like(root / "byte", byte_level(), CHATML, eos_token="<|im_end|>"),
        "thinking": qwen_like(root / "thinking", thinking(), CHATML, eos_token="<|im_end|>"),
        "metaspace": llava_like(root / "meta", metaspace(), VICUNA, **llama),
        "legacy": llava_like(root / "legacy", metaspace(legacy=True), VICUNA, **llama),
        "unigram": llava_like(root / "unigram", unigram(), VICUNA, **llama),
    }


@pytest.fixture(scope="session")
def encoders(cases) -> dict[str, PromptEncoder]:
    return {name: case.encoder for name, case in cases.items()}


@pytest.fixture(scope="session")
def with_bos(tmp_path_factory) -> Case:
    """A tokenizer that puts BOS in front by itself, as Llama's does."""
    backend = metaspace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return llava_like(tmp_path_factory.mktemp("bos"), backend, VICUNA, bos_token="<s>", eos_token="</s>")


def an_image(number: int = 0) -> ImagePart:
    return ImagePart("", ImageBudget(), f"messages[0].content[{number}].image_url")


def say(role: str, *parts: str | ImagePart) -> Message:
    return Message(role, tuple(TextPart(part) if isinstance(part, str) else part for part in parts))


def as_dicts(messages: list[Message], change: Callable[[str], str] = str) -> list[dict]:
    """The same conversation as transformers takes it."""

    def part(one):
        return {"type": "text", "text": change(one.text)} if isinstance(one, TextPart) else {"type": "image"}

    return [{"role": message.role, "content": [part(one) for one in message.parts]} for message in messages]


WORDS = [
    "What",
    "is",
    "this",
    "picture",
    "naïve",
    "Ünïcödé",
    "日本",
    "中文",
    "текст",
    "😀",
    "👩‍👩‍👧‍👦",
    "e\u0301",
    "x" * 30,
    "42",
]
GAPS = [" ", " ", "  ", "\n", "\n\n", "\t", "", ", ", ". ", "|", "<", ">", "\u3000", "\r\n", "     "]


def some_text(rng: random.Random, strings: tuple[str, ...] = ()) -> str:
    tokens = [
        rng.choice(strings) if strings and rng.random() < 0.3 else rng.choice(WORDS) for _ in range(rng.randint(1, 9))
    ]
    middle = "".join(token + rng.choice(GAPS) for token in tokens)
    return rng.choice(["", "", " ", "\n", "  \n"]) + middle + rng.choice(["", "", " ", "\n\n"])


def some_conversation(rng: random.Random, strings: tuple[str, ...] = ()) -> list[Message]:
    """Roles in any order but for the system's, which is first; texts and images in any order."""
    roles = ["system"] * rng.randint(0, 1) + [
        rng.choice(["user", "user", "assistant"]) for _ in range(rng.randint(1, 5))
    ]
    messages = []
    for role in roles:
        parts = [some_text(rng, strings) for _ in range(rng.randint(1, 3))]
        if role == "user":
            parts += [an_image() for _ in range(rng.choice([0, 0, 1, 2, 4]))]
            rng.shuffle(parts)
        messages.append(say(role, *parts))
    return messages


@pytest.fixture(scope="session")
def tools():
    """The functions above, for test modules."""
    names = ("an_image", "say", "as_dicts", "some_text", "some_conversation", "llava_like", "qwen_like", "metaspace")
    return type("Tools", (), {name: staticmethod(globals()[name]) for name in names} | {"mini": MINI})
