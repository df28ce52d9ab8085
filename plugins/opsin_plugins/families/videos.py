"""What the families of Qwen2-VL share about videos: which frames are taken, their size, and their patches."""

from __future__ import annotations

import math

import numpy as np

from opsin_plugins.families.images import MAX_ASPECT, smart_size
from opsin_plugins.spec import U8, Grid, SpecError, VideoBudget, VideoPlan, VideoSource, VideoSpec

DEFAULT_FPS = 2.0  # what these models were trained with; where a processor samples nothing by itself, too
CONTEXT_SHARE = 0.9  # of the tokens by which a processor of Qwen2-VL bounds all frames


def plan_video(source: VideoSource, spec: VideoSpec, budget: VideoBudget) -> VideoPlan:
    """Equal to transformers' Qwen2VLVideoProcessor ("steps") and Qwen3VLVideoProcessor ("ends"). Raises SpecError."""
    _check_bounds(budget)
    if source.sampled:
        frames = tuple(range(source.frames))
    else:
        frames = by_steps(source, spec, budget) if spec.sampling == "steps" else by_ends(source, spec, budget)
    if len(frames) < spec.temporal:
        raise _too_few(len(frames), source, spec, budget)
    height, width = frame_size(len(frames), source.height, source.width, spec, budget)
    patches_in_time = -(-len(frames) // spec.temporal)
    tokens = patches_in_time * (height // spec.factor) * (width // spec.factor)
    if budget.max_tokens is not None and tokens > budget.max_tokens:
        raise SpecError(
            f"{len(frames)} frames of {width} x {height} are {tokens:,} visual tokens; there is room for "
            f"{budget.max_tokens:,}. Fewer are made with a smaller 'fps', 'num_frames' or 'max_pixels'"
        )
    return VideoPlan(source, frames, height, width, tokens)


def _check_bounds(budget: VideoBudget) -> None:
    """Of what a request and its parts have said together."""
    least, most = budget.min_frames or 1, budget.max_frames or math.inf
    if least > most:
        raise SpecError(f"min_frames {least} is more than max_frames {most}", "min_frames")
    if budget.num_frames is not None and not least <= budget.num_frames <= most:
        raise SpecError(f"num_frames {budget.num_frames} is not within min_frames and max_frames", "num_frames")


def _too_few(taken: int, source: VideoSource, spec: VideoSpec, budget: VideoBudget) -> SpecError:
    have = f"{source.frames} frame" + ("s" if source.frames != 1 else "")
    if source.frames < spec.temporal or source.sampled:
        return SpecError(f"a video of {have}: this model needs at least {spec.temporal}")
    option = next((name for name in ("num_frames", "max_frames") if getattr(budget, name) is not None), None)
    of = "is" if taken == 1 else "are"
    return SpecError(f"{taken} of {have} {of} taken: this model needs at least {spec.temporal}", option)


def by_steps(source: VideoSource, spec: VideoSpec, budget: VideoBudget) -> tuple[int, ...]:
    """At equal steps from the first one; a multiple of the frames that a patch spans."""
    total, group = source.frames, spec.temporal
    wanted = _number(spec, budget)
    if wanted is not None:
        count = round(wanted / group) * group
        if count > total:
            raise SpecError(f"num_frames {wanted} of a video that has {total}", "num_frames")
    else:
        least, most = _bounds(spec, budget)
        most = min(most, total) // group * group
        taken = min(max(total / source.fps * _fps(spec, budget), least), most, total)
        count = math.floor(taken / group) * group
    # (In float32, as torch.arange gives it, and cut.)
    step = total / count if count else 1.0
    return tuple(int(np.float32(i * step)) for i in range(count))


def by_ends(source: VideoSource, spec: VideoSpec, budget: VideoBudget) -> tuple[int, ...]:
    """Evenly from the first to the last."""
    total, count = source.frames, _number(spec, budget)
    if count is None:
        least, most = _bounds(spec, budget)
        count = min(max(int(total / source.fps * _fps(spec, budget)), least), most, total)
    if count > total:
        raise SpecError(f"num_frames {count} of a video that has {total}", "num_frames")
    return tuple(np.linspace(0, total - 1, count).round().astype(int).tolist())


def _number(spec: VideoSpec, budget: VideoBudget) -> int | None:
    """What a request says goes before what the files say, either way to say it."""
    if budget.num_frames is not None or budget.fps is not None:
        return budget.num_frames
    return spec.num_frames


def _fps(spec: VideoSpec, budget: VideoBudget) -> float:
    return budget.fps or spec.fps or DEFAULT_FPS


def _bounds(spec: VideoSpec, budget: VideoBudget) -> tuple[int, int]:
    return budget.min_frames or spec.min_frames, budget.max_frames or spec.max_frames


def frame_size(count: int, height: int, width: int, spec: VideoSpec, budget: VideoBudget) -> tuple[int, int]:
    """(height, width) that `count` frames are resized to. Raises SpecError for a side ratio over 200."""
    if spec.budget == "frame":
        most = spec.max_pixels
        if spec.frame_tokens:
            together = int(spec.frame_tokens * spec.factor**2 * CONTEXT_SHARE)
            most = max(min(most, together * spec.temporal // count), int(spec.min_pixels * 1.05))
        wishes = [budget.max_pixels, None if budget.total_pixels is None else max(1, budget.total_pixels // count)]
        most = min([most, *(wish for wish in wishes if wish is not None)])
        return smart_size(height, width, spec.factor, min(spec.min_pixels, most), most)
    most = spec.max_pixels
    if spec.frame_tokens:
        share = min(spec.frame_tokens * spec.factor**2, spec.max_pixels // count)
        most = max(share, int(spec.min_pixels * 1.05)) * count
    wishes = [budget.total_pixels, None if budget.max_pixels is None else budget.max_pixels * count]
    most = min([most, *(wish for wish in wishes if wish is not None)])
    return size_in_time(count, height, width, spec, most)


def size_in_time(count: int, height: int, width: int, spec: VideoSpec, most: int) -> tuple[int, int]:
    """As `smart_size`, of all frames together. most: their pixels."""
    factor = spec.factor
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise SpecError(f"video of {width} x {height} has a side ratio over {MAX_ASPECT}")
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    together = round(count / spec.temporal) * spec.temporal * high * wide
    least = min(spec.min_pixels, most)
    if together > most:
        shrink = math.sqrt(count * height * width / most)
        high = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif together < least:
        grow = math.sqrt(least / (count * height * width))
        high, wide = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return max(factor, high), max(factor, wide)


def video_patches(frames: U8, spec: VideoSpec) -> tuple[U8, Grid]:
    """U8 [F, H, W, 3] to (U8 [t·rows·columns·temporal, 3·p·p], (t, rows, columns)): merge × merge neighbours stand
    together, and the frames of a patch behind each other. The last frame fills up what is missing."""
    patch, merge, group = spec.patch, spec.merge, spec.temporal
    missing = -len(frames) % group
    if missing:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, 0)])
    grid = (len(frames) // group, frames.shape[1] // patch, frames.shape[2] // patch)
    split = frames.reshape(grid[0], group, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch, 3)
    ordered = split.transpose(0, 2, 5, 3, 6, 1, 8, 4, 7)
    return np.ascontiguousarray(ordered).reshape(math.prod(grid) * group, 3 * patch * patch), grid


def timestamps(plan: VideoPlan, group: int) -> list[float]:
    """Seconds of each patch in time: between its first frame and its last."""
    frames = [*plan.frames, *[plan.frames[-1]] * (-len(plan.frames) % group)]
    seconds = [frame / plan.source.fps for frame in frames]
    return [(seconds[i] + seconds[i + group - 1]) / 2 for i in range(0, len(seconds), group)]
