"""Language models in GGUF: the logits of transformers, from the weights that it dequantizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, quants
from transformers import LlamaConfig, LlamaForCausalLM

from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.loading.gguf.container import read_container
from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec import SpecError
from support import oracle
from support.gguf_files import gguf_name, rewritten, write_llama
from support.oracle import with_declared

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


def tiny(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=320, hidden_size=256, intermediate_size=512, **(SIZES | changes))  # type: ignore[arg-type]
    return LlamaForCausalLM(config).eval()


def dequantize(model: LlamaForCausalLM, path: Path) -> None:
    """The weights that the file means, in the model, by the package's own reading."""
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for name, tensor in model.state_dict().items():
        own = gguf_name(name)
        found = stored.get(own or "")
        if found is None:
            continue
        numbers = torch.from_numpy(quants.dequantize(found.data, found.tensor_type).copy())
        heads = {"attn_q": 4, "attn_k": 2}.get((own or "").split(".")[-2])
        if heads is not None:
            numbers = numbers.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        tensor.copy_(numbers)


@pytest.mark.parametrize(
    "kinds",
    [
        {"blk": Kind.Q4_0},
        {"blk": Kind.Q4_1, "token_embd": Kind.Q8_0},
        {"attn_v": Kind.Q8_0, "attn": Kind.Q4_0, "ffn_down": Kind.Q5_1, "ffn": Kind.Q5_0, "token_embd": Kind.Q4_0},
        {"blk": Kind.F16, "token_embd": Kind.BF16},
    ],
    ids=["q4_0", "q4_1", "mixed", "floats"],
)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_weights_that_the_file_means(
    tmp_path: Path, kinds: dict[str, Kind], tied: bool
) -> None:
    theirs = tiny(tie_word_embeddings=tied)
    path = write_llama(tmp_path / "m.gguf", theirs, kinds)
    dequantize(theirs, path)
    ours = with_declared(path)
    asked = oracle.prompt(ours, list(range(5, 25)), [])
    (mine,) = oracle.our_logits(ours, [asked])
    wanted = oracle.their_logits(theirs, ours, asked)
    assert (mine - wanted).abs().max() < 1e-3 * wanted.abs().max()
    quantized = [kind for kind in kinds.values() if kind not in (Kind.F16, Kind.BF16)]
    assert held(ours.model) < held(dense(path)) or not quantized


def held(model: Model) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def dense(path: Path) -> Model:
    opened = open_model(path)
    return build_model(opened.spec, opened.registry, device="meta")


def test_factors_of_frequencies_are_a_tensor(tmp_path: Path) -> None:
    """As llama.cpp writes what transformers calls llama3: the factors by which frequencies are divided."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    theirs = tiny(rope_parameters=rope, max_position_embeddings=256)
    plain = 1.0 / (10000.0 ** (torch.arange(0, 64, 2) / 64))
    factors = plain / theirs.model.rotary_emb.inv_freq
    path = write_llama(tmp_path / "m.gguf", theirs, {}, extra={"rope_freqs.weight": factors})
    ours = with_declared(path)
    asked = oracle.prompt(ours, list(range(5, 125)), [])
    (mine,) = oracle.our_logits(ours, [asked])
    wanted = oracle.their_logits(theirs, ours, asked)
    assert (mine - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_what_changes_queries_by_their_position_is_refused(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", tiny(), {})
    fields = {"general.architecture": "mistral3", "mistral3.attention.temperature_scale": 0.1}
    same = {key: value for key, value in read_container(path).fields.items() if key.startswith("llama.")}
    fields |= {key.replace("llama.", "mistral3."): value for key, value in same.items()}
    with pytest.raises(SpecError, match="scales queries by their position"):
        open_model(rewritten(path, tmp_path / "other.gguf", fields))
