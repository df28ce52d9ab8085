"""Fields of a chat request that other servers have added to OpenAI's, and that their clients send to every server. None
acts here: those that cannot change an answer are ignored, the others pass where they ask for what happens anyway."""

from __future__ import annotations

from typing import Annotated

from opsin_server.chat.fields import Ignored, Strict, only


class CommonDialects(Strict):
    """Of every request."""

    # Names of the request or of its conversation, and advice to caches.
    request_id: Ignored = None  # vLLM
    rid: Ignored = None  # SGLang
    id: Ignored = None
    chat_id: Ignored = None  # Open WebUI
    session_id: Ignored = None  # Open WebUI, OpenRouter
    cache_control: Ignored = None  # Anthropic
    cache_prompt: Ignored = None  # llama.cpp
    id_slot: Ignored = None  # llama.cpp
    keep_alive: Ignored = None  # Ollama

    # About special tokens and reasoning, which no answer here holds in fields of their own.
    spaces_between_special_tokens: Ignored = None  # vLLM
    separate_reasoning: Ignored = None  # SGLang
    stream_reasoning: Ignored = None  # SGLang

    # vLLM and SGLang.
    use_beam_search: Annotated[None, only(False)] = None
    length_penalty: Annotated[None, only(1)] = None
    early_stopping: Annotated[None, only(False)] = None
    bad_words: Annotated[None, only([])] = None
    skip_special_tokens: Annotated[None, only(True)] = None
    include_stop_str_in_output: Annotated[None, only(False)] = None
    no_stop_trim: Annotated[None, only(False)] = None
    include_reasoning: Annotated[None, only(True)] = None
    return_tokens_as_token_ids: Annotated[None, only(False)] = None
    return_token_ids: Annotated[None, only(False)] = None
    return_hidden_states: Annotated[None, only(False)] = None
    documents: Annotated[None, only([])] = None
    logits_processors: Annotated[None, only([])] = None
    vllm_xargs: Annotated[None, only({})] = None

    # Samplers of llama.cpp and of what is built on it, at the values that turn them off.
    typical_p: Annotated[None, only(1)] = None
    tfs_z: Annotated[None, only(1)] = None
    top_a: Annotated[None, only(0)] = None
    mirostat: Annotated[None, only(0)] = None
    mirostat_mode: Annotated[None, only(0)] = None
    repeat_penalty: Annotated[None, only(1)] = None
    dynatemp_range: Annotated[None, only(0)] = None
    dry_multiplier: Annotated[None, only(0)] = None
    xtc_probability: Annotated[None, only(0)] = None
    epsilon_cutoff: Annotated[None, only(0)] = None
    eta_cutoff: Annotated[None, only(0)] = None
    n_probs: Annotated[None, only(0)] = None
    timings_per_token: Annotated[None, only(False)] = None

    # Ollama, OpenRouter, Mistral, DeepSeek.
    options: Annotated[None, only({})] = None
    format: Annotated[None, only("")] = None
    transforms: Annotated[None, only([])] = None
    plugins: Annotated[None, only([])] = None
    models: Annotated[None, only([])] = None
    provider: Annotated[None, only({})] = None
    reasoning: Annotated[None, only({}, {"effort": "none"}, {"enabled": False})] = None
    thinking: Annotated[None, only({"type": "disabled"})] = None
    safe_prompt: Annotated[None, only(False)] = None

    # The OpenAI SDKs' own arguments, sent in the body by mistake.
    extra_body: Annotated[None, only({})] = None
    extra_headers: Annotated[None, only({})] = None
    extra_query: Annotated[None, only({})] = None


class Dialects(CommonDialects):
    """Of a conversation's."""

    best_of: Annotated[None, only(1)] = None
    echo: Annotated[None, only(False)] = None
    add_special_tokens: Annotated[None, only(False)] = None
