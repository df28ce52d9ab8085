"""The tokenizer: byte-level BPE over the demonstration world's own sentences.

Letters inside quotes and all digits are single tokens, so that reading is spelled out; every class name (" circle",
"Circle", " red") is one token, so that the vision tower can be aligned with it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mini_opsin import questions, talk, words
from mini_opsin.fonts import Fonts
from mini_opsin.picture import Picture
from mini_opsin.scenes import scene
from mini_opsin.texts import random_text, text_picture

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
# A word after a space, a word at the start of a text, then single letters (those after a quote), digits, the rest.
SPLIT = r""" \p{L}+|(?<![\p{L}"])\p{L}+|\p{L}|\p{N}| ?[^\s\p{L}\p{N}]|\s"""
SPACE = "Ġ"  # how byte-level BPE writes a leading space

# Images first, wherever the client put them: the model has only ever seen that order.
CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- endif -%}
{%- endfor -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""


def class_words() -> list[str]:
    return [*words.COLOURS, *words.SHAPES, *words.EMOJI]


def corpus(rng: random.Random, pictures: int, fonts: Fonts) -> Iterator[str]:
    """Questions, answers and every word the model must say, each often enough to become one token."""
    for word in class_words():
        for form in (word, word.capitalize(), words.plural(word)):
            yield from [f"a {form}"] * 60
        yield from [word.capitalize()] * 60
    for said in talk.TALKS:
        yield from said.asks * 8
        yield from [said.answer] * 30
    yield from talk.SYSTEM_PROMPTS * 20
    yield from ["system", "user", "assistant", words.OFF_TOPIC] * 200
    weights = dict.fromkeys(questions.TASKS, 1.0)
    for _ in range(pictures):
        for _, question, answer, _ in questions.ask(_any_picture(rng, fonts), rng, weights, 8):
            yield from (question, answer)
        pair = (scene(rng, (48, 48), 1, fonts), scene(rng, (48, 48), 2, fonts))
        for _, question, answer, _ in questions.ask_pair(pair, rng, 1):
            yield from (question, answer)


def _any_picture(rng: random.Random, fonts: Fonts) -> Picture:
    if rng.random() < 0.7:
        return scene(rng, (48, 48), rng.randint(0, 5), fonts)
    text = random_text(rng, rng.choice(("digit", "letter", "word", "number")), 6)
    return text_picture(rng, (96, 48), text, 8, fonts)


def train(vocab_size: int, pictures: int, seed: int, fonts: Fonts) -> PreTrainedTokenizerFast:
    """Raises ValueError where the vocabulary is too small for every class name to be one token."""
    bare = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bare.train_from_iterator(corpus(random.Random(seed), pictures, fonts), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bare,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL[1:] if t != "<|im_end|>"],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    check(tokenizer)
    return tokenizer


def check(tokenizer: PreTrainedTokenizerFast) -> None:
    forms = [form for name in class_words() for form in (f" {name}", name.capitalize())]
    several = [form for form in forms if len(tokenizer.encode(form)) != 1]
    if several:
        raise ValueError(f"these class names are not single tokens, enlarge the vocabulary: {several}")
