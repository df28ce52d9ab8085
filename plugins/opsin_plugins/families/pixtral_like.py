"""What Pixtral-style models share: pictures of any size, whose rows end with tokens of their own."""

from __future__ import annotations

from collections.abc import Sequence

from opsin_plugins.families.base import Family
from opsin_plugins.families.encoders.pixtral import Pixtral
from opsin_plugins.families.llava_like import instruct_template
from opsin_plugins.families.positions import rows_with_breaks, write_images
from opsin_plugins.spec import Encode, Expanded, ModelFiles, ModelSpec, SpecError, VisualItem

ROW_END, IMAGE_END = "[IMG_BREAK]", "[IMG_END]"


class PixtralStyle(Family):
    encoder = Pixtral()

    def expand(self, ids: Sequence[int], items: Sequence[VisualItem], spec: ModelSpec, encode: Encode) -> Expanded:
        assert spec.image is not None
        assert spec.image_token is not None
        token, merge = spec.image_token, spec.image.merge
        ends = [_one_token(encode, text) for text in (ROW_END, IMAGE_END)] if items else [0, 0]
        return write_images(
            ids, items, token, lambda i: rows_with_breaks(i.grid[1] // merge, i.grid[2] // merge, token, *ends)
        )

    def chat_template(self, files: ModelFiles) -> str | None:
        return instruct_template("[IMG]")


def _one_token(encode: Encode, text: str) -> int:
    ids = list(encode(text))
    if len(ids) != 1:
        raise SpecError(f"the tokenizer has no token {text}, which ends a row of an image")
    return ids[0]
