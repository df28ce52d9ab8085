"""Checks of what a plugin makes of pictures and prompts: patches, placeholders, positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opsin_plugins.conformance.batches import Prompt
from opsin_plugins.conformance.subject import IMAGE, Subject, picture
from opsin_plugins.conformance.verdicts import Failed, Skipped, same
from opsin_plugins.spec import U8, ImageBudget, SpecError, VisualItem

FREE = ImageBudget()
AMPLE = ImageBudget(max_pixels=10**9, max_tokens=10**6)
SIZES = ((40, 30), (25, 60), (33, 33), (12, 70))
NARROW = ((8, 240), (240, 8))  # 1 : 30


def pictures(subject: Subject) -> str:
    """Patches, grid and visual tokens agree; the same each time; a budget never makes a picture larger."""
    architecture, spec = subject.architecture, subject.spec
    images = [picture(seed, *size) for seed, size in enumerate(SIZES)]
    if spec.vision is None:
        _refuses(subject, images[0])
        raise Skipped("a language model, which refuses pictures")
    before = [image.copy() for image in images]
    together = architecture.preprocess(images, spec, FREE)
    same("items of four pictures", len(together), len(images))
    if not all(np.array_equal(a, b) for a, b in zip(images, before, strict=True)):
        raise Failed("preprocess writes into the pictures that it is given")
    for image, item in zip(images, together, strict=True):
        what = f"picture of {image.shape[0]} x {image.shape[1]}"
        _agrees(subject, what, item)
        _equal(f"{what}, the second time", _one(subject, image, FREE), item)
        _equal(f"{what}, with an ample budget", _one(subject, image, AMPLE), item)
        for limit in (1, max(1, item.tokens // 2)):
            small = _one(subject, image, ImageBudget(max_tokens=limit))
            _agrees(subject, f"{what}, at most {limit} tokens", small)
            if small.tokens > item.tokens:
                raise Failed(
                    f"{what}: {small.tokens} visual tokens with at most {limit}, but {item.tokens} without a limit"
                )
    return _narrow(subject)


def _narrow(subject: Subject) -> str:
    refused = ""
    for size in NARROW:
        try:
            item = _one(subject, picture(0, *size), FREE)
        except SpecError as error:
            refused = f"1 : 30 is refused: {error}"
            continue
        _agrees(subject, f"picture of {size[0]} x {size[1]}", item)
    return refused


def _refuses(subject: Subject, image: U8) -> None:
    try:
        subject.architecture.preprocess([image], subject.spec, FREE)
    except SpecError:
        return
    raise Failed("a model without vision takes a picture")


def _one(subject: Subject, image: U8, budget: ImageBudget) -> VisualItem:
    (item,) = subject.architecture.preprocess([image], subject.spec, budget)
    return item


def _agrees(subject: Subject, what: str, item: VisualItem) -> None:
    vision, projector = subject.spec.vision, subject.spec.projector
    assert vision is not None
    assert projector is not None
    same(f"{what}: type of the pixels", str(item.pixels.dtype), "uint8")
    same(f"{what}: pixels of grid {item.grid}", item.pixels.shape, (int(np.prod(item.grid)), vision.patch_dim))
    made = subject.sketch.tokens_of(item)
    if item.arrange is None:
        same(f"{what}: rows, where tower and projector make {made} visual tokens", item.tokens, made)
    else:
        same(f"{what}: arranged rows", len(item.arrange), item.tokens)
        least, most = int(item.arrange.min()), int(item.arrange.max())
        if least < -int(projector.newline) or most >= made:
            raise Failed(f"{what}: arranged from {made} visual tokens, but names {least} to {most}")
    if not 0 <= item.hidden < item.tokens:
        raise Failed(f"{what}: {item.hidden} of {item.tokens} visual tokens are hidden")


def _equal(what: str, got: VisualItem, expected: VisualItem) -> None:
    same(f"{what}, grid", got.grid, expected.grid)
    same(f"{what}, rows", got.tokens, expected.tokens)
    if not np.array_equal(got.pixels, expected.pixels):
        raise Failed(f"{what}: other pixels")
    orders = [None if item.arrange is None else item.arrange.tolist() for item in (got, expected)]
    same(f"{what}, arranged", *orders)


def expand(subject: Subject) -> str:
    """Spans lie in order with a place for each visual token, text stays, and unequal numbers are refused."""
    for (turn, _), prompt in zip(subject.turns, subject.prompts, strict=True):
        _spans(subject, prompt)
        inside = np.zeros(len(prompt), bool)
        for span in prompt.expanded.spans:
            inside[span.start : span.start + span.length] = True
        kept = [i for i in subject.ids(turn) if i != subject.spec.image_token]
        same("the text around the pictures", prompt.expanded.ids[~inside].tolist(), kept)
        if subject.spec.cross is not None:
            _ranges(prompt)
    if subject.spec.vision is not None:
        _counts(subject)
    return ""


def _spans(subject: Subject, prompt: Prompt) -> None:
    expanded, at = prompt.expanded, 0
    same("type of the ids", str(expanded.ids.dtype), "int32")
    if not 0 <= expanded.ids.min() <= expanded.ids.max() < subject.spec.decoder.embeddings:
        raise Failed(f"ids up to {expanded.ids.max()}, but there are {subject.spec.decoder.embeddings} embeddings")
    if subject.spec.cross is None:
        same("pictures of the spans", sorted({s.item for s in expanded.spans}), list(range(len(prompt.items))))
    rows = [0] * len(prompt.items)
    for span in expanded.spans:
        if span.start < at or span.start + span.length > len(prompt):
            raise Failed(f"span {span.start} + {span.length} in a prompt of {len(prompt)}, after one that ends at {at}")
        at = span.start + span.length
        if span.visual_mask is not None:
            same("marks of a span", len(span.visual_mask), span.length)
        rows[span.item] += span.length if span.visual_mask is None else sum(span.visual_mask)
    if subject.spec.cross is None:
        same("placeholders of each picture", rows, [item.tokens for item in prompt.items])


def _ranges(prompt: Prompt) -> None:
    seen = prompt.expanded.visible
    if seen is None:
        same("pictures of a prompt without ranges", len(prompt.items), 0)
        return
    same("shape of the ranges", seen.shape, (len(prompt), 2))
    if (np.diff(seen[:, 1]) < 0).any():
        raise Failed(f"the ends of the ranges fall: {seen[:, 1].tolist()}")
    same("the end of the last range", int(seen[-1, 1]), len(prompt.items))


def _counts(subject: Subject) -> None:
    (item,) = subject.architecture.preprocess([picture(0, *SIZES[0])], subject.spec, FREE)
    for turn in ([1, 2], [1, IMAGE, 2, IMAGE, 3]):
        try:
            subject.architecture.expand(subject.ids(turn), [item], subject.spec, subject.encode)
        except SpecError:
            continue
        raise Failed(f"{turn.count(IMAGE)} placeholders for 1 picture are taken (it must be a SpecError)")


def positions(subject: Subject) -> str:
    """[A, T], one step a text row on all axes, and a delta that carries on where the prompt ends."""
    axes = max(1, len(subject.spec.decoder.rope.sections))
    for prompt in subject.prompts:
        same("shape of the positions", prompt.positions.shape, (axes, len(prompt)))
        if prompt.positions.min() < 0:
            raise Failed(f"a position of {prompt.positions.min()}")
        text = _text_rows(prompt)
        if text[0] and prompt.positions[:, 0].any():
            same("positions of the first text row", prompt.positions[:, 0].tolist(), [0] * axes)
        steps = np.diff(prompt.positions, axis=1)[:, text[1:] & text[:-1]]
        if (steps != 1).any():
            raise Failed(f"from one text row to the next, positions step by {sorted(set(steps.ravel().tolist()))}")
        carried = len(prompt) - 1 + prompt.delta
        same(
            f"positions of the last row, where delta {prompt.delta} wants {carried}",
            prompt.positions[:, -1].tolist(),
            [carried] * axes,
        )
    return f"{axes} {'axis' if axes == 1 else 'axes'}, delta {[prompt.delta for prompt in subject.prompts]}"


def _text_rows(prompt: Prompt) -> NDArray[np.bool_]:
    text = np.ones(len(prompt), bool)
    for span in prompt.expanded.spans:
        text[span.start : span.start + span.length] = False
    return text
