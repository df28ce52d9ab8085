"""The repositories of the supported families as they are published: names of files, forms of configurations, places of
templates. Sizes, vocabularies and weights are tiny; configurations are those of tests/fixtures/configs with tiny
figures, or written from what the repositories hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from support.repositories import llama, llava, mistral, qwen, smolvlm
from support.repositories.base import Repository

MAKERS: tuple[Callable[[], Repository], ...] = (
    qwen.qwen2_vl,
    qwen.qwen2_5_vl,
    qwen.qwen3_vl,
    qwen.qwen_vl,
    llama.llama_vision,
    mistral.pixtral,
    mistral.pixtral_params,
    mistral.mistral_small,
    llava.llava,
    llava.llava_next,
    llava.llava_siglip,
    smolvlm.smolvlm_1,
    smolvlm.smolvlm_2,
    smolvlm.idefics3,
    llama.llama,
    mistral.mistral,
    qwen.qwen2,
    qwen.qwen3,
)


@cache
def repositories() -> Mapping[str, Repository]:
    return {made.name: made for made in (make() for make in MAKERS)}
