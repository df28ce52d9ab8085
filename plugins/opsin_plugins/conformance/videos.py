"""Checks of what a plugin makes of videos: which frames it takes, patches, placeholders."""

from __future__ import annotations

import numpy as np

from opsin_plugins.conformance.subject import Subject, picture
from opsin_plugins.conformance.verdicts import Failed, Skipped, same
from opsin_plugins.spec import (
    Clip,
    ImageBudget,
    SpecError,
    TakesVideos,
    VideoBudget,
    VideoPlan,
    VideoSource,
    VisualItem,
)

FREE = VideoBudget()
# One whose frames are chosen here, one whose frames were, and one that is narrow.
SOURCES = (VideoSource(9, 4.0, 40, 30), VideoSource(5, 2.0, 33, 33, sampled=True), VideoSource(30, 30.0, 24, 70))


def videos(subject: Subject) -> str:
    """The plan's frames are the source's; patches, grid and visual tokens agree with it; each has a place in a prompt,
    beside a picture's; what is past a limit is refused."""
    architecture, spec = subject.architecture, subject.spec
    if spec.video is None:
        raise Skipped("a model without videos")
    if not isinstance(architecture, TakesVideos):
        raise Failed("the spec has a 'video', and the family no plan_video or no preprocess_video")
    for source in SOURCES:
        what = f"video of {source.frames} frames of {source.height} x {source.width}"
        plan = architecture.plan_video(source, spec, FREE)
        same(f"{what}: the plan, the second time", architecture.plan_video(source, spec, FREE), plan)
        _plan(subject, what, plan)
        _limit(architecture, subject, what, plan)
        frames = np.stack([picture(number, plan.height, plan.width) for number in plan.frames])
        item = architecture.preprocess_video(Clip(plan, frames), spec)
        _item(subject, what, plan, item)
        _prompt(subject, what, item)
    return ""


def _plan(subject: Subject, what: str, plan: VideoPlan) -> None:
    rules, source = subject.spec.video, plan.source
    assert rules is not None
    if not plan.frames or min(plan.frames) < 0 or max(plan.frames) >= source.frames:
        raise Failed(f"{what}: the frames {plan.frames} are not all there")
    same(f"{what}: the order of its frames", list(plan.frames), sorted(plan.frames))
    if source.sampled:
        same(f"{what}, which were chosen by who sends them: those taken", len(set(plan.frames)), source.frames)
    same(f"{what}: pixels past whole tokens", (plan.height % rules.factor, plan.width % rules.factor), (0, 0))


def _limit(architecture: TakesVideos, subject: Subject, what: str, plan: VideoPlan) -> None:
    try:
        architecture.plan_video(plan.source, subject.spec, VideoBudget(max_tokens=plan.tokens - 1))
    except SpecError:
        return
    raise Failed(f"{what}: {plan.tokens} visual tokens are taken where one less is the limit (it must be a SpecError)")


def _item(subject: Subject, what: str, plan: VideoPlan, item: VisualItem) -> None:
    vision, rules = subject.spec.vision, subject.spec.video
    assert vision is not None
    assert rules is not None
    if item.video is None:
        raise Failed(f"{what}: its item has no 'video', and would be a picture")
    same(f"{what}: type of the pixels", str(item.pixels.dtype), "uint8")
    rows = int(np.prod(item.grid)) * rules.temporal
    same(f"{what}: pixels of grid {item.grid}", item.pixels.shape, (rows, vision.patch_dim))
    same(f"{what}: visual tokens of the plan", plan.tokens, item.tokens)
    same(f"{what}: visual tokens of tower and projector", subject.sketch.tokens_of(item), item.tokens)


def _prompt(subject: Subject, what: str, item: VisualItem) -> None:
    architecture, spec = subject.architecture, subject.spec
    assert spec.video_token is not None
    assert spec.image_token is not None
    still = architecture.preprocess([picture(0, 40, 30)], spec, ImageBudget())[0]
    one, two, three = subject.text_ids[:3]
    ids, items = [one, spec.video_token, two, spec.image_token, three], [item, still]
    expanded = architecture.expand(ids, items, spec, subject.encode)
    rows = [0, 0]
    for span in expanded.spans:
        rows[span.item] += span.visual_tokens
    same(f"{what}: placeholders of it and of a picture", rows, [item.tokens, still.tokens])
    found, delta = architecture.positions(expanded, items, spec)
    same(f"{what}: the position of the last row", set(found[:, -1].tolist()), {len(expanded.ids) - 1 + delta})
    for wrong in ([one, two], [one, spec.image_token, two, spec.video_token]):
        try:
            architecture.expand(wrong, items[: len(wrong) // 2], spec, subject.encode)
        except SpecError:
            continue
        raise Failed(f"{what}: a prompt without its placeholder, or with a picture's, is taken (not a SpecError)")
