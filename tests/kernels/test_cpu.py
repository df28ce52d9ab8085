"""What C computes on a CPU: the definitions' numbers, and of each row the same bits whoever its neighbours are."""

from __future__ import annotations

import ctypes
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opsin_kernels import activations, fp8_linear, int4_linear, int8_linear, kv_rows, rms_norm, rotary, table4_linear
from opsin_kernels.attention import paged_attention
from opsin_kernels.cpu import build, decode, linear, native, rows, sampling
from opsin_kernels.cpu.linear import Form
from opsin_kernels.layout import Layout
from opsin_kernels.sampling import SamplingRow, sample_ref, settings_of

FORMS: list[tuple[Form, int, bool, bool]] = [
    ("int4", 32, True, False),
    ("int4", 32, True, True),
    ("int4", 64, True, True),
    ("int4", 128, True, False),
    ("int8", 16, False, True),
    ("int8", 32, True, True),
    ("int8", 384, False, False),
    ("fp8", 128, False, False),
    ("fp8", 384, False, False),
    ("table4", 64, False, False),
    ("float32", 384, False, False),
    ("bfloat16", 384, False, False),
    ("float16", 384, False, False),
]
PLAIN = {name: dtype for dtype, name in linear.PLAIN.items()}
INPUTS = 384


@pytest.fixture(autouse=True)
def there() -> None:
    if isinstance(found := native.native(), str):
        pytest.skip(found)


class Weight:
    """Of random codes."""

    def __init__(self, form: Form, group: int, offset: bool, half: bool, outputs: int) -> None:
        torch.manual_seed(0)
        size = torch.float16 if half else torch.float32
        self.form, self.table = form, torch.randn(16) if form == "table4" else None
        self.scale = None if form in PLAIN else torch.rand(outputs, INPUTS // group).to(size)
        self.offset = torch.randn(outputs, INPUTS // group).to(size) if offset else None
        packed = INPUTS // 2 if form in ("int4", "table4") else INPUTS
        self.codes = torch.randint(0, 256, (outputs, packed), dtype=torch.uint8)
        if form == "int8":
            self.codes = self.codes.view(torch.int8)
        if form in PLAIN:
            self.codes = torch.randn(outputs, INPUTS).to(PLAIN[form])
        if form == "fp8":
            self.codes = torch.randn(outputs, INPUTS).to(torch.float8_e4m3fn)

    def meant(self) -> Tensor:
        if self.scale is None:
            return self.codes.float()
        if self.form == "int4":
            assert self.offset is not None
            return int4_linear.dequantize_groups(self.codes, self.scale, self.offset, torch.float32)
        if self.form == "int8":
            return int8_linear.dequantize(self.codes, self.scale, self.offset, torch.float32)
        if self.form == "fp8":
            return fp8_linear.dequantize(self.codes, self.scale, torch.float32)
        assert self.table is not None
        return table4_linear.dequantize(self.codes, self.scale, self.table, torch.float32)

    def product(self, x: Tensor) -> Tensor:
        weight = linear.NativeWeight(self.form, self.codes, self.scale, self.offset, self.table)
        assert weight.fits
        return weight.product(x)


@pytest.fixture(params=[1, 2, 3], ids=lambda count: f"{count} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("form", "group", "offset", "half"), FORMS)
@pytest.mark.parametrize("outputs", [1, 3, 66, 331])
def test_products_are_those_of_the_weight_that_is_meant(
    form: Form, group: int, offset: bool, half: bool, outputs: int, threads: int
) -> None:
    weight = Weight(form, group, offset, half, outputs)
    meant, x = weight.meant().double(), torch.randn(37, INPUTS)
    wanted = x.double() @ meant.T
    whole = weight.product(x)
    assert (whole - wanted).abs().max() < 1e-6 * (x.double().abs() @ meant.abs().T).max()
    for count in (0, 1, 2, 3, 4, 5, 8, 13, 17):
        assert torch.equal(weight.product(x[:count]), whole[:count]), count
    assert torch.equal(weight.product(x[7:8]), whole[7:8])


@pytest.mark.parametrize(("form", "group", "offset", "half"), [FORMS[0], FORMS[6], FORMS[-3]])
def test_rows_of_a_large_picture_are_taken_some_at_a_time(form: Form, group: int, offset: bool, half: bool) -> None:
    weight, x = Weight(form, group, offset, half, 67), torch.randn(523, INPUTS)
    whole = weight.product(x)
    assert torch.equal(torch.cat([weight.product(part) for part in x.split(100)]), whole)


def test_16_bit_rows_are_multiplied_as_they_are_and_rounded_once() -> None:
    weight, x = Weight("int4", 32, True, True, 64), torch.randn(3, INPUTS).bfloat16()
    assert torch.equal(weight.product(x), weight.product(x.float()).bfloat16())


def test_others_are_left_to_the_definitions() -> None:
    x = torch.randn(2, 40)
    codes, scale = torch.zeros(3, 40, dtype=torch.int8), torch.ones(3, 1)
    assert linear.native_product("int8", x, codes, scale) is None, "40 inputs are no whole vectors"
    codes, scale = torch.zeros(3, 32, dtype=torch.uint8), torch.ones(3, 4)
    x = torch.randn(2, 64)
    assert linear.native_product("int4", x, codes, scale, scale) is None, "16 inputs a group are less than two vectors"
    assert linear.native_product("int8", x.to("meta"), codes, scale) is None


@torch.no_grad()
def test_rows_are_normed_and_gated_as_defined() -> None:
    torch.manual_seed(0)
    x, delta, weight, floor = torch.randn(5, 96), torch.randn(5, 96), torch.randn(96), torch.tensor(1e-5)
    assert rows.can_take(x, weight)
    assert torch.allclose(rows.rms_norm(x, weight, floor), rms_norm.rms_norm_ref(x, weight, floor), atol=1e-6)
    added, normed = rows.add_rms_norm(x, delta, weight, floor)
    assert torch.equal(added, x + delta)
    assert torch.equal(normed, rows.rms_norm(added, weight, floor))
    assert torch.equal(normed[2:3], rows.rms_norm(added[2:3].clone(), weight, floor)), "whoever its neighbours are"
    gate_up = torch.cat([torch.randn(5, 32) * 30, torch.randn(5, 32)], 1)
    gate_up[0, :4] = torch.tensor([0.0, -0.0, 200.0, -200.0])
    assert torch.allclose(rows.silu_gated(gate_up), activations.gated_ref(gate_up, "silu"), atol=1e-6)
    assert rows.silu_gated(torch.full((1, 32), torch.nan)).isnan().all()


def test_rows_that_need_a_gradient_are_left_to_the_definitions() -> None:
    x, weight = torch.randn(2, 32, requires_grad=True), torch.ones(32)
    assert not rows.can_take(x, weight)
    with torch.no_grad():
        assert rows.can_take(x, weight)
        assert not rows.can_take(x.bfloat16(), weight)
        assert not rows.can_take(x[:, :24].contiguous())


@torch.no_grad()
def test_turned_keys_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cos, sin = rotary.angles_to_tables(torch.randn(5, 32), torch.float32)
    qkv, slots = torch.randn(5, 4 + 2 * 2, 64), torch.tensor([3, 9, 0, 17, 4])
    pools = [torch.zeros(5, 4, 4, 64) for _ in range(2)]
    mine = rotary.rotate_and_store(qkv.clone(), 4, cos, sin, pools[0], slots)
    theirs = rotary.rotate_and_store_ref(qkv.clone(), 4, cos, sin, pools[1], slots)
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert torch.allclose(pools[0], pools[1], atol=1e-6)
    assert pools[0].any()


@torch.no_grad()
def test_rows_that_fill_a_batch_up_are_written_nowhere() -> None:
    cos, sin = rotary.angles_to_tables(torch.randn(2, 32), torch.float32)
    pool = torch.zeros(2, 4, 2, 64)
    rotary.rotate_and_store(torch.randn(2, 3, 64), 1, cos, sin, pool, torch.tensor([-1, 5]))
    assert pool.flatten(0, 1)[5].all()
    assert torch.count_nonzero(pool) == 2 * 64


def test_pages_that_only_a_device_knows_are_not_read_by_c() -> None:
    q, pool, table = torch.randn(1, 2, 64), torch.randn(2, 4, 2, 64), torch.zeros(1, 2)
    assert decode.can_attend(q, pool, Layout([1], [3], table.long()))
    assert not decode.can_attend(q, pool, Layout([1], [3], table.int()))
    assert not decode.can_attend(q, pool, Layout([1], [3], table.long(), given=[]))


@torch.no_grad()
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 64), (3, 3, 32), (24, 2, 128), (1, 1, 16)])
def test_attention_of_the_newest_rows(
    heads: int, kv_heads: int, width: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    lengths = [1, 70, 16, 33, 15]
    pool = torch.randn(30, 16, 2 * kv_heads, width)
    table = torch.randperm(25).view(5, 5)
    q = torch.randn(5, heads + 3, width)[:, :heads] * 3  # a slice of a fused projection

    def run(chosen: list[int]) -> Tensor:
        layout = Layout([1] * len(chosen), [lengths[i] for i in chosen], table[chosen])
        return paged_attention(q[chosen] if len(chosen) < 5 else q, pool, layout)

    mine = run(list(range(5)))
    for i in range(5):
        assert torch.equal(run([i]), mine[i : i + 1])
    monkeypatch.setattr(decode, "can_attend", lambda *_: False)
    assert torch.allclose(mine, run(list(range(5))), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 64), (3, 3, 32), (24, 2, 128)])
def test_keys_and_values_in_8_bits(
    heads: int, kv_heads: int, width: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written and read by C as by the definitions, and near what was not rounded."""
    torch.manual_seed(0)
    lengths, table = [37, 70, 16], torch.randperm(15).view(3, 5)
    slots = [int(table[i, t // 16]) * 16 + t % 16 for i, length in enumerate(lengths) for t in range(length)]
    cos, sin = rotary.angles_to_tables(torch.randn(len(slots), width // 2), torch.float32)
    qkv, layout = torch.randn(len(slots), heads + 2 * kv_heads, width), Layout([1] * 3, lengths, table)

    def run(kind: torch.dtype) -> tuple[Tensor, Tensor]:
        pool = torch.zeros(15, 16, 2 * kv_heads, width + (kv_rows.SCALE_BYTES if kind == torch.int8 else 0), dtype=kind)
        q = rotary.rotate_and_store(qkv.clone(), heads, cos, sin, pool, torch.tensor(slots))
        last = [sum(lengths[: i + 1]) - 1 for i in range(3)]
        return pool, paged_attention(q[last], pool, layout)

    pool, mine = run(torch.int8)
    _, plain = run(torch.float32)
    assert (mine - plain).abs().max() < 0.03 * plain.abs().max()
    monkeypatch.setattr(decode, "can_attend", lambda *_: False)
    monkeypatch.setattr(decode, "can_turn", lambda *_: False)
    theirs, defined = run(torch.int8)
    assert torch.allclose(mine, defined, rtol=1e-3, atol=1e-4)
    numbers = (kv_rows.dequantize(one, torch.float32) for one in (pool, theirs))
    assert torch.allclose(*numbers, atol=0.05)
    assert (pool != theirs).float().mean() < 0.01  # (a rounding that falls between two codes)


@pytest.fixture(scope="module", params=build.levels())
def of_level(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """As the wheel brings it."""
    mine, levels = torch.backends.cpu.get_cpu_capability(), list(build.LEVELS)
    if levels.index(request.param) < levels.index(mine if mine in build.LEVELS else "DEFAULT"):
        pytest.skip(f"this processor has no {request.param}")
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract(
            f"opsin_kernels/cpu/{build.library_name(request.param)}", tmp_path_factory.mktemp("level")
        )
    return native._opened(Path(library))


@pytest.mark.parametrize(("form", "group", "offset", "half"), FORMS)
def test_products_at_every_level_of_a_processor(
    of_level: ctypes.CDLL, form: Form, group: int, offset: bool, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "loaded", lambda: of_level)
    weight = Weight(form, group, offset, half, 67)
    meant, x = weight.meant().double(), torch.randn(18, INPUTS)
    whole = weight.product(x)
    assert (whole - x.double() @ meant.T).abs().max() < 1e-6 * (x.double().abs() @ meant.abs().T).max()
    for count in (1, 2, 3, 5, 8, 9):
        assert torch.equal(weight.product(x[:count]), whole[:count]), count


@torch.no_grad()
def test_every_level_of_a_processor_computes_the_same(of_level: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = of_level
    monkeypatch.setattr(rows, "loaded", lambda: of_level)
    x, weight, floor = torch.randn(5, 96), torch.randn(96), torch.tensor(1e-5)
    assert torch.allclose(rows.rms_norm(x, weight, floor), rms_norm.rms_norm_ref(x, weight, floor), atol=1e-6)
    assert torch.allclose(rows.silu_gated(x * 9), activations.gated_ref(x * 9, "silu"), atol=1e-5)
    cos, sin = rotary.angles_to_tables(torch.randn(3, 32), torch.float32)
    qkv, slots, pools = torch.randn(3, 3, 64), torch.tensor([0, 5, 2]), [torch.zeros(2, 4, 2, 64) for _ in range(2)]
    turned = qkv.clone()
    pointers = (part.data_ptr() for part in (turned, cos, sin, pools[0], slots))
    loaded.rotate_and_store(*pointers, 3, 1, 1, 64, 0)
    rotary.rotate_and_store_ref(qkv, 1, cos, sin, pools[1], slots)
    assert torch.allclose(turned, qkv, atol=1e-6)
    assert torch.allclose(*pools, atol=1e-6)


@pytest.mark.parametrize("width", [5, 17, 3000])
def test_tokens_at_every_level_of_a_processor(
    of_level: ctypes.CDLL, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "loaded", lambda: of_level)
    torch.manual_seed(width)
    kinds = [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 40, 0.9, 0.0), (1.2, 0, 0.9, 0.0), (1.0, 3, 0.999, 0.1)]
    settings = [SamplingRow(*kind, (i + 0.5) / 7) for i in range(7) for kind in kinds]
    logits = torch.randn(len(settings), width) * 3
    logits[:, 1::2] = torch.tensor([-torch.inf, torch.nan])[torch.randint(0, 2, (1, width // 2))]
    tokens, largest = sampling.draw(logits, settings_of(settings, logits.device))
    assert torch.equal(tokens, sample_ref(logits, settings))
    assert torch.equal(largest.isnan(), logits.isnan().any(1))


def test_without_a_compiler_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(build.NoCompilerError, match="no C compiler"):
        build.build("DEFAULT", tmp_path)
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no such option >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(build.NoCompilerError, match="cc failed: no such option"):
        build.build("DEFAULT", tmp_path)


def test_a_damaged_library_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    level = torch.backends.cpu.get_cpu_capability()
    name = build.library_name(level if level in build.LEVELS else "DEFAULT")
    whole = (native.HERE / name).read_bytes()
    made = []

    def compiled(level: str, folder: Path, *, anew: bool = False) -> Path:
        made.append(anew)
        part = folder / "part"
        part.write_bytes(whole)
        return part.replace(folder / name)

    monkeypatch.setattr(native, "HERE", tmp_path)
    monkeypatch.setattr(native, "build", compiled)
    (tmp_path / name).write_bytes(b"")
    assert isinstance(native.native.__wrapped__(), ctypes.CDLL)
    assert made == [True]
    assert isinstance(native.native.__wrapped__(), ctypes.CDLL)
    assert made == [True]


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    for name, age in (("old", 3600), ("new", 0)):
        (tmp_path / f".build-{name}").mkdir()
        os.utime(tmp_path / f".build-{name}", (time.time() - age,) * 2)
    build._forget_killed(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".build-new"]


def test_a_fork_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    weight, x = Weight("int8", 384, False, False, 331), torch.randn(2, INPUTS)
    wanted = weight.product(x)
    if (child := os.fork()) == 0:
        os._exit(0 if torch.equal(weight.product(x), wanted) else 1)
    _, status = os.waitpid(child, 0)
    torch.set_num_threads(1)
    assert status == 0
