"""Idefics3 and SmolVLM: SigLIP over tiles, 2 x 2 to 4 x 4 neighbours joined, tiles named in the prompt.
Sources: arXiv 2408.12637, arXiv 2504.05299."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from opsin_plugins.families.base import Family, end_ids, llama_groups, text_section, vision_groups
from opsin_plugins.families.config_fields import flag, integer, section
from opsin_plugins.families.encoders.siglip import Siglip
from opsin_plugins.families.image_processors import IDEFICS3, edge, normalization, resample_of
from opsin_plugins.families.images import resize, tile_patches, tiles
from opsin_plugins.families.language import decoder_rules, decoder_spec, is_tied, max_positions
from opsin_plugins.families.positions import Written, write_images
from opsin_plugins.spec import (
    U8,
    Config,
    Encode,
    Expanded,
    ImageBudget,
    ImageSpec,
    ModelFiles,
    ModelSpec,
    Pattern,
    ProjectorSpec,
    Rename,
    Rule,
    SpecError,
    VisualItem,
)

LANGUAGE = "model.text_model."
VISION_DEFAULTS = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
LARGEST = 4096  # no side is ever longer, whatever the configuration says
FAKE, GLOBAL = "<fake_token_around_image>", "<global-img>"


class Idefics3(Family):
    name = "idefics3"
    encoder = Siglip()

    def spec(self, files: ModelFiles) -> ModelSpec:
        config = files.config
        text, defaults = text_section(config)
        vision = {**VISION_DEFAULTS, **section(config, "vision_config", {}), "bucketed": True, "post_norm": True}
        settings = IDEFICS3.resolve(files.preprocessor)
        tower = self.encoder.spec(vision, normalization(settings))
        merge = integer(config, "scale_factor", 2)
        tied = is_tied(files, text)
        decoder = decoder_spec(text, tied, defaults)
        return ModelSpec(
            family=self.name,
            decoder=decoder,
            vision=tower,
            projector=ProjectorSpec(tower.width, 0, decoder.width, "gelu", merge=merge, bias=False),
            image=_image(settings, tower.patch, merge),
            fusion="scatter",
            encoder=self.encoder.name,
            image_token=integer(config, "image_token_id", 128257, least=0),
            eos=end_ids(files),
            max_positions=max_positions(text, defaults),
        )

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        assert spec.vision is not None
        return [
            *decoder_rules(spec.decoder, LANGUAGE),
            *self.encoder.weights(spec.vision, "model.vision_model."),
            Rename("model.connector.modality_projection.proj.weight", "projector.mlp.weight"),
        ]

    def prepare(self, image: U8, spec: ModelSpec, budget: ImageBudget) -> VisualItem:
        assert spec.image is not None
        return prepare(image, spec.image, budget)

    def expand(self, ids: Sequence[int], items: Sequence[VisualItem], spec: ModelSpec, encode: Encode) -> Expanded:
        assert spec.image_token is not None
        token = spec.image_token
        return write_images(ids, items, token, lambda item: _written(item, token, encode))

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return {
            **llama_groups(r"model\.text_model\.layers\.\d+\."),
            **vision_groups(self.encoder, "model.vision_model."),
            "projector.mlp": re.compile(r"model\.connector\.modality_projection\.proj"),
        }

    def chat_template(self, files: ModelFiles) -> str | None:
        return TURNS


class SmolVLM(Idefics3):
    """The second release of SmolVLM says so in its model_type; pictures are treated alike."""

    name = "smolvlm"


def _image(settings: Config, patch: int, merge: int) -> ImageSpec:
    tile, longest = _edge(settings, "max_image_size"), _edge(settings, "size")
    if tile % (patch * merge):
        raise SpecError(f"max_image_size {tile} is no multiple of {merge} patches of {patch}")
    return ImageSpec(
        "tiles",
        resample_of(settings),
        patch,
        merge=merge,
        size=(tile, tile),
        longest_edge=longest,
        split=flag(settings, "do_image_splitting"),
    )


def _edge(settings: Config, key: str) -> int:
    longest = edge(settings, key, "longest_edge", int_is_square=True)
    if longest is None:
        raise SpecError(f"image processor {key} {settings[key]!r} has no longest_edge")
    return min(longest, LARGEST)


def prepare(image: U8, spec: ImageSpec, budget: ImageBudget) -> VisualItem:
    """Twice resized, as published: to the longest edge, then to whole tiles; the whole picture comes last, as one tile.
    Under a budget the longest edge goes down tile by tile."""
    tile, per_tile = spec.size[0], (spec.size[0] // spec.patch // spec.merge) ** 2
    longest = spec.longest_edge
    if not spec.split:
        once = resize(image, *_plan(image, longest, tile)[0], spec.resample)
        pixels, grid = tile_patches([resize(once, tile, tile, spec.resample)], spec.patch, spec.merge)
        return VisualItem(pixels, grid, tokens=per_tile)
    while longest > tile and not _within(_plan(image, longest, tile)[1], tile, per_tile, budget):
        longest = max(tile, (longest - 1) // tile * tile)
    first, (rows, columns) = _plan(image, longest, tile)
    fitted = resize(resize(image, *first, spec.resample), rows * tile, columns * tile, spec.resample)
    parts = [fitted]
    if rows * columns > 1:
        parts = [*tiles(fitted, tile, tile), resize(fitted, tile, tile, spec.resample)]
    pixels, grid = tile_patches(parts, spec.patch, spec.merge)
    return VisualItem(pixels, grid, tokens=len(parts) * per_tile, tiles=(rows, columns))


def _plan(image: U8, longest: int, tile: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the first resize, and (rows, columns) of tiles."""
    height, width = image.shape[:2]
    ratio = width / height
    if width >= height:
        first = (_even(int(longest / ratio)), longest)
        columns = math.ceil(longest / tile)
        return first, (math.ceil(max(1, int(columns * tile / (first[1] / first[0]))) / tile), columns)
    first = (longest, _even(int(longest * ratio)))
    rows = math.ceil(longest / tile)
    return first, (rows, math.ceil(max(1, int(rows * tile * (first[1] / first[0]))) / tile))


def _even(side: int) -> int:
    return max(1, side + side % 2)


def _within(layout: tuple[int, int], tile: int, per_tile: int, budget: ImageBudget) -> bool:
    count = layout[0] * layout[1]
    return (budget.max_pixels is None or count * tile**2 <= budget.max_pixels) and (
        budget.max_tokens is None or (count + 1) * per_tile <= budget.max_tokens
    )


def _written(item: VisualItem, token: int, encode: Encode) -> Written:
    rows, columns = item.tiles
    names = [FAKE + GLOBAL]
    if item.grid[0] > 1:
        places = [(r, c) for r in range(rows) for c in range(columns)]
        names = [("\n" if r and not c else "") + f"{FAKE}<row_{r + 1}_col_{c + 1}>" for r, c in places]
        names.append("\n\n" + FAKE + GLOBAL)
    ids: list[int] = []
    visual: list[bool] = []
    for name in names:
        before, count = encode(name), item.tokens // len(names)
        ids += [*before, *[token] * count]
        visual += [False] * len(before) + [True] * count
    end = encode(FAKE)
    return [*ids, *end], (*visual, *[False] * len(end))


# Written for directories without a template: the turns of Idefics3's paper; no blank before a picture.
TURNS = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- set parts = message['content'] -%}
{%- if parts is string -%}{%- set parts = [{'type': 'text', 'text': parts}] -%}{%- endif -%}
{{ message['role'] | capitalize }}:
{%- if parts[0]['type'] != 'image' -%}{{ ' ' }}{%- endif -%}
{%- for part in parts -%}
{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}<end_of_utterance>
{% endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""
