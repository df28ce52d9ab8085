"""Pictures of any ratio: what preprocessing takes follows the picture and what is kept of it, nothing in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opsin_plugins.families.images import REDUCING_GAP, resize, resize_and_crop, resize_part, smart_size
from opsin_plugins.spec import U8, SpecError

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
TESTS = Path(__file__).parents[1]

# A picture of H x W: Pillow's copy of it has 4 bytes a pixel, and pointers to every row (of two copies, while it is
# resized). What is kept exists as Pillow's, as tiles and as patches. The rest is weights of filters.
BYTES_PER_PIXEL, COPIES_OF_KEPT, REST = 20, 4, 24 * 2**20
SHAPES = [
    *((1, 4000), (4000, 1), (2, 60_000), (60_000, 2), (1, 4_000_000), (4_000_000, 1)),
    *((40, 100_000), (100_000, 40), (100, 20_000), (20_000, 100), (1, 200), (200, 1), (1, 1), (3000, 2000)),
]

CHILD = """
import json, re, resource, sys
from pathlib import Path
import numpy as np
from opsin_glimpse.encoder import Mixer
from opsin_plugins.families.encoders.pixtral import Pixtral
from opsin_plugins.families.encoders.siglip import Siglip
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import ImageBudget, ImageSpec, SpecError
from support import published

FREE = ImageBudget()
NAMES = ("llava-1.5-7b-hf", "llava-v1.6-mistral-7b-hf", "pixtral-12b", "Pixtral-12B-2409", "SmolVLM-256M-Instruct",
         "Idefics3-8B-Llama3", "Llama-3.2-11B-Vision-Instruct", "Qwen-VL-Chat", "Qwen2-VL-2B-Instruct",
         "Qwen2.5-VL-3B-Instruct", "Qwen3-VL-2B-Instruct")

def of_family(architecture, spec):
    return lambda image: architecture.preprocess([image], spec, FREE)[0].pixels

def of_encoder(encoder, spec):
    return lambda image: encoder.preprocess(image, spec, FREE)[0]

def works():
    for name in NAMES:
        files = published.model_files(name)
        architecture = Registry().architecture(files)
        yield name, of_family(architecture, architecture.spec(files))
    yield "siglip", of_encoder(Siglip(), ImageSpec("stretch", 3, 14, size=(384, 384)))
    yield "mistral3", of_encoder(Pixtral(), ImageSpec("longest", 3, 14, merge=2, longest_edge=1540))
    yield "glimpse", of_encoder(Mixer(), ImageSpec("stretch", 3, 4, merge=2, size=(32, 32)))

def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def measured(work, shape):
    image = np.zeros((*shape, 3), np.uint8) + np.uint8(7)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    try:
        kept = work(image).nbytes
    except SpecError:
        kept = 0
    except Exception as error:
        return type(error).__name__
    return kept, resident("VmHWM") - before

resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)  # a mistake ends here, and not the machine
found = {}
for name, work in works():
    measured(work, (300, 300))
    found[name] = [measured(work, shape) for shape in json.loads(sys.argv[1])]
print(json.dumps(found))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak memory counter")
def test_memory_follows_the_picture_and_what_is_kept_of_it() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS), str(EXAMPLE)])}
    command = [sys.executable, "-c", CHILD, json.dumps(SHAPES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 14
    for family, results in found.items():
        for (height, width), result in zip(SHAPES, results, strict=True):
            assert not isinstance(result, str), f"{family}, {height} x {width}: {result}"
            kept, growth = result
            refused = max(height, width) > 200 * min(height, width) and family.startswith(("Qwen2", "Qwen3"))
            assert (kept == 0) is refused, f"{family}, {height} x {width}"
            most = BYTES_PER_PIXEL * height * width + COPIES_OF_KEPT * kept + REST
            assert growth < most, f"{family}, {height} x {width}: {growth >> 20} MiB, of {most >> 20}"


@dataclass(frozen=True)
class Kind:
    """A way in which pixels are hard on a filter."""

    name: str
    least: int

    def picture(self, seed: int, height: int, width: int) -> U8:
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return noise if self.least == 0 else np.where(noise >= self.least, 255, 0).astype(np.uint8)


kinds = st.sampled_from([Kind("noise", 0), Kind("black and white", 128), Kind("white on black", 230)])
sides = st.one_of(st.integers(1, 12), st.integers(1, 400))


def apart(ours: U8, theirs: U8) -> int:
    return int(np.abs(ours.astype(np.int16) - theirs.astype(np.int16)).max())


@given(kinds, st.integers(0, 99), sides, sides, st.integers(1, 90), st.sampled_from([1, 2, 3]), st.data())
@settings(max_examples=150, deadline=None)
def test_a_part_is_what_the_whole_would_have_there(
    kind: Kind, seed: int, height: int, width: int, edge: int, resample: int, data: st.DataObject
) -> None:
    high, wide = (edge, edge * width // height) if height <= width else (edge * height // width, edge)
    rows, columns = data.draw(st.integers(1, high)), data.draw(st.integers(1, wide))
    top, left = data.draw(st.integers(0, high - rows)), data.draw(st.integers(0, wide - columns))
    image = kind.picture(seed, height, width)
    whole = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling(resample)))
    part = resize_part(image, (high, wide), (top, left, rows, columns), resample)
    assert part.shape == (rows, columns, 3)
    assert apart(part, whole[top : top + rows, left : left + columns]) <= 2


@pytest.mark.parametrize("size", [(7, 60), (60, 7), (30, 30), (20, 31), (31, 20)])
@pytest.mark.parametrize("edge", [8, 13, 24])
def test_the_middle_is_where_the_processor_cuts(size: tuple[int, int], edge: int) -> None:
    """Also where the picture is smaller than what is cut out: then black stands around it."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = Kind("noise", 0).picture(edge, *size)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": 13, "width": 16}, do_normalize=False, do_rescale=False
    )
    theirs = np.asarray(processor(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0])
    ours = resize_and_crop(image, edge, 13, 16, 3)
    assert ours.shape == (13, 16, 3)
    assert apart(ours, theirs.transpose(1, 2, 0).astype(np.uint8)) <= 2


@pytest.mark.parametrize("resample", [1, 2, 3])
@pytest.mark.parametrize("times", [2.0, 2.4, 3.0, 9.3])
def test_averages_before_a_filter_that_shrinks_a_lot_change_next_to_nothing(times: float, resample: int) -> None:
    result = 12
    length = int(times * REDUCING_GAP * result) + 1
    stripes = np.broadcast_to(
        (np.arange(length) // (length // result // 2 + 1) % 2 * 255).astype(np.uint8)[:, None], (3, length, 3)
    )
    for image in (*(kind.picture(1, 3, length) for kind in (Kind("", 0), Kind("", 128), Kind("", 250))), stripes):
        for picture in (image, np.ascontiguousarray(image.transpose(1, 0, 2))):
            size = (3, result) if len(picture) == 3 else (result, 3)
            exact = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling(resample)))
            assert apart(resize(picture, *size, resample), exact) <= 2


@given(st.integers(1, 60_000), st.integers(1, 60_000), st.sampled_from([16, 28, 32]), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_a_smart_size_has_rows_and_columns_within_reason(height: int, width: int, factor: int, least: int) -> None:
    """Also where a configuration sets no least size."""
    most = max(least, 10**6)
    try:
        high, wide = smart_size(height, width, factor, least, most)
    except SpecError:
        assert max(height, width) > 200 * min(height, width)
        return
    assert min(high, wide) >= factor
    assert high % factor == wide % factor == 0
    assert high * wide <= max(most, 200 * factor * factor) + (high + wide) * factor
