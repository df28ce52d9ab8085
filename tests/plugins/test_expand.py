"""Prompts with pictures at their full length, against transformers' processors; Pixtral's against its paper's rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from opsin_plugins.families.architectures.mllama import _visible
from opsin_plugins.spec import ImageBudget
from opsin_server.text.tokenizer import Tokenizer
from support import oracle, tiny, words

PICTURES = [oracle.picture(0, 40, 30), oracle.picture(1, 25, 60), oracle.picture(2, 12, 70)]
TEXTS = ["what is {}?", "{}{} and {}", "a\n{}\n\nb {}", "{}"]


def their_processor(family: str, directory: Path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    given_ = dict(tiny.FAMILIES[family].preprocessor)
    if family == "llava":
        return hf.LlavaProcessor(
            CLIPImageProcessorPil(**given_), tokenizer, patch_size=7, vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )  # fmt: skip
    if family == "llava_next":
        return hf.LlavaNextProcessor(
            LlavaNextImageProcessorPil(**given_), tokenizer, patch_size=7, vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": list(words.IDEFICS)[1:]})
    return hf.Idefics3Processor(Idefics3ImageProcessorPil(**given_), tokenizer, image_seq_len=4)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_expanded_ids_are_the_processors(family: str, text: str, tmp_path: Path) -> None:
    ours = oracle.saved(tiny.FAMILIES[family].make(), tmp_path)
    words.write_tokenizer(tmp_path, family)
    tokenizer, count = Tokenizer(tmp_path), text.count("{}")
    written = text.replace("{}", "<image>")
    images = PICTURES[:count]
    items = ours.architecture.preprocess(images, ours.spec, ImageBudget())
    expanded = ours.architecture.expand(tokenizer.encode(written), items, ours.spec, tokenizer.encode)
    theirs = their_processor(family, tmp_path)(
        images=[Image.fromarray(i) for i in images], text=written, add_special_tokens=False
    )
    assert expanded.ids.tolist() == np.asarray(theirs["input_ids"]).ravel().tolist()


@given(
    st.lists(st.one_of(st.integers(1, 5), st.just("image")), min_size=1, max_size=12),
    st.lists(st.integers(1, 4), min_size=12, max_size=12),
)
@settings(max_examples=200, deadline=None)
def test_what_rows_see_is_what_transformers_masks_let_them_see(parts: list, tiles: list[int]) -> None:
    ids: list[int] = []
    for part in parts:
        ids += [9] if part == "image" else [5] * part
    places = [i for i, token in enumerate(ids) if token == 9]
    if not places:
        return
    counts = tiles[: len(places)]
    dense = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(ids, 9)], [counts], 4, len(ids)
    )[0]
    ranges = _visible(places, len(ids), attend_before=False)
    for row, (lo, hi) in enumerate(ranges.tolist()):
        seen = {image for image in range(len(places)) if dense[row, image].any()}
        assert seen == set(range(lo, hi))
        assert all(dense[row, image].sum() == counts[image] for image in seen)


def test_mllama_tiles_are_the_processors(tmp_path: Path) -> None:
    ours = oracle.saved(tiny.mllama(), tmp_path)
    processor = MllamaImageProcessorPil(**tiny.FAMILIES["mllama"].preprocessor)
    found = processor(images=[[Image.fromarray(p) for p in PICTURES]], return_tensors="np")
    items = ours.architecture.preprocess(PICTURES, ours.spec, ImageBudget())
    assert [item.grid[0] for item in items] == found["num_tiles"][0]
    ids = [ours.spec.vision.arrangements.index(item.tiles) + 1 for item in items]
    assert ids == found["aspect_ratio_ids"][0].tolist()


@pytest.mark.parametrize("family", ["llava.pixtral", "mistral3"])
def test_each_row_of_a_pixtral_picture_ends_with_its_token(family: str, tmp_path: Path) -> None:
    ours = oracle.saved(tiny.FAMILIES[family].make(), tmp_path)
    words.write_tokenizer(tmp_path, family)
    tokenizer = Tokenizer(tmp_path)
    (item,) = ours.architecture.preprocess(PICTURES[:1], ours.spec, ImageBudget())
    expanded = ours.architecture.expand(tokenizer.encode("a[IMG]b"), [item], ours.spec, tokenizer.encode)
    rows, columns = (n // ours.spec.image.merge for n in item.grid[1:])
    row = "[IMG]" * columns
    assert tokenizer.encode("a" + "[IMG_BREAK]".join([row] * rows) + "[IMG_END]b") == expanded.ids.tolist()
    (span,) = expanded.spans
    assert [expanded.ids[span.start + i] == 150 for i in range(span.length)] == list(span.visual_mask)
