"""Pictures over a pair of GGUFs: the logits of transformers, and the model that the published directory gives."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from opsin_plugins.loading.content_digest import ContentDigest
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.gguf.container import read_container
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.lora_targets import LoraTargets
from opsin_plugins.loading.open_model import OpenModel, open_model
from opsin_plugins.spec import ModelSpec
from support import oracle, tiny
from support.gguf_files import rewritten
from support.mmproj_files import Pair, write_mmproj, write_pair


def qwen2_5_vl(**changes: Any) -> Any:
    """Windows of 112 pixels, which no field names, of 4 x 4 merged patches."""
    return tiny.qwen2_5_vl(vision={"patch_size": 14, "window_size": 112, "tokens_per_second": 2}, **changes)


MAKERS: Mapping[str, Callable[..., Any]] = {
    "llava": tiny.llava,
    "qwen2_vl": tiny.qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "idefics3": tiny.idefics3,
    "smolvlm": tiny.smolvlm,
    "llava.pixtral": lambda: tiny.pixtral("llama"),
    "mistral3": tiny.mistral3,
}
KINDS: Mapping[str, Mapping[str, Kind]] = {
    "f32": {},
    "f16": {"": Kind.F16},
    "q8_0": {"position_embd": Kind.F32, "patch_embd": Kind.F16, "": Kind.Q8_0},
    "mixed": {
        "attn_v": Kind.Q8_0,
        "v.blk": Kind.Q4_0,
        "mm.": Kind.Q5_0,
        "patch_embd": Kind.F16,
        "blk": Kind.Q4_1,
        "position_embd": Kind.F32,
    },
}
IMAGE = tiny.IMAGE_TOKEN
SIZES = [(40, 30), (33, 150), (170, 230)]
PROMPTS = [([5, 6, IMAGE, 7, 8, 9], SIZES[:1]), ([9, IMAGE, 8, IMAGE, 7, 6], SIZES[1:]), ([4, 3, 11, 12], [])]


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("family", MAKERS)
@torch.no_grad()
def test_logits_with_pictures_are_those_of_transformers(tmp_path: Path, family: str, kinds: Mapping[str, Kind]) -> None:
    pair = write_pair(tmp_path, MAKERS[family](), kinds)
    ours = oracle.with_declared(pair.model, pair.mmproj)
    for ids, sizes in PROMPTS:
        asked = oracle.prompt(ours, ids, [oracle.picture(i, *size) for i, size in enumerate(sizes)])
        (mine,) = oracle.our_logits(ours, [asked])
        wanted = oracle.their_logits(pair.theirs, ours, asked)
        assert wanted.std() > 0.3, "a flat distribution proves nothing"
        assert (mine - wanted).abs().max() < 1e-3 * wanted.abs().max()


# What their directories say of pictures, where tiny ones say something else.
QWEN = {"min_pixels": 3136, "max_pixels": 12_845_056}
PIXTRAL = {"size": {"longest_edge": 64}}
PREPROCESSOR: Mapping[str, Mapping[str, Any]] = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": {**QWEN, "patch_size": 14},
    "llava.pixtral": PIXTRAL,
    "mistral3": PIXTRAL,
}


def settings(family: str) -> dict[str, Any]:
    return {**tiny.PREPROCESSOR[family], **PREPROCESSOR.get(family, {})}


@pytest.mark.parametrize("family", MAKERS)
def test_it_is_the_model_that_the_directory_gives(tmp_path: Path, family: str) -> None:
    theirs = MAKERS[family]()
    pair = write_pair(tmp_path / "pair", theirs)
    directory = tiny.save(theirs, tmp_path / "directory")
    (directory / "preprocessor_config.json").write_text(json.dumps(settings(family)))
    mine, wanted = open_model(pair.model, mmproj=pair.mmproj).spec, open_model(directory).spec
    assert mine.family == {"smolvlm": "idefics3"}.get(family, family)  # (one class, under two names)
    if wanted.decoder.rope.scaling is not None:  # (in the file as factors, which the logits prove)
        wanted = replace(wanted, decoder=replace(wanted.decoder, rope=mine.decoder.rope))
    assert rounded(mine) == rounded(replace(wanted, family=mine.family))


def rounded(spec: ModelSpec) -> Any:
    """With five digits of its numbers."""

    def within(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: within(inner) for name, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(map(within, value))
        return f"{value:.5g}" if isinstance(value, float) else value

    return within(asdict(spec))


@pytest.mark.parametrize("family", MAKERS)
def test_adapters_know_its_linears_by_the_same_names(tmp_path: Path, family: str) -> None:
    theirs = MAKERS[family]()
    pair = write_pair(tmp_path / "pair", theirs)
    directory = tiny.save(theirs, tmp_path / "directory")
    (directory / "preprocessor_config.json").write_text(json.dumps(settings(family)))
    mine, wanted = (modules(open_model(*paths)) for paths in ((pair.model, None, None, pair.mmproj), (directory,)))
    assert mine == wanted
    assert {group.split(".")[0] for group in mine.values()} == {"language", "vision", "projector"}


def modules(opened: OpenModel) -> dict[str, str]:
    rules, groups = opened.architecture.weights(opened.spec), opened.architecture.lora_groups(opened.spec)
    return LoraTargets(rules, linears_of(opened.spec, opened.registry), groups).modules(opened.files.tensors)


def test_the_tower_is_part_of_what_the_model_is(tmp_path: Path) -> None:
    theirs = tiny.qwen2_vl()
    pair = write_pair(tmp_path, theirs)
    before = ContentDigest(read_model_files(pair.model, mmproj=pair.mmproj)).compute()
    assert before != ContentDigest(read_model_files(pair.model)).compute()
    theirs.state_dict()["model.visual.blocks.1.attn.proj.bias"].add_(1.0)
    other = write_mmproj(tmp_path / "other.gguf", theirs)
    assert ContentDigest(read_model_files(pair.model, mmproj=other)).compute() != before


def test_files_of_the_first_converter_are_read(tmp_path: Path) -> None:
    """Of Qwen2-VL: the MLP's linears the wrong way round, no width of it, and a table of positions that nothing has."""
    pair = write_pair(tmp_path, tiny.qwen2_vl())
    swap, tensors = {"up": "down", "down": "up"}, read_container(pair.mmproj).tensors
    names = {name: re.sub("(?<=ffn_)(up|down)", lambda found: swap[found[0]], name) for name in tensors}
    table = {"v.position_embd.weight": np.zeros((10, 10), np.float32)}
    first = rewritten(pair.mmproj, tmp_path / "first.gguf", {"clip.vision.feed_forward_length": 0}, names, table)
    ours = [oracle.with_declared(pair.model, file) for file in (pair.mmproj, first)]
    asked = oracle.prompt(ours[0], [5, IMAGE, 7], [oracle.picture(0, 60, 40)])
    assert torch.equal(*(oracle.our_logits(one, [asked])[0] for one in ours))


def held(pair: Pair) -> int:
    model = oracle.with_declared(pair.model, pair.mmproj).model
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_codes_of_the_tower_stay_codes(tmp_path: Path, family: str) -> None:
    dense = write_pair(tmp_path / "dense", MAKERS[family]())
    codes = write_pair(tmp_path / "codes", MAKERS[family](), {"v.blk": Kind.Q8_0, "mm.": Kind.Q8_0})
    assert held(codes) < held(dense)
