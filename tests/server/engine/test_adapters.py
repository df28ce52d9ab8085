"""Adapters by reference: loaded beside the steps, kept in slots, and never confused, whatever is cached."""

from __future__ import annotations

import hashlib
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import SpecError
from opsin_server.engine.engine import Engine
from opsin_server.engine.running import adapter_loader
from opsin_server.engine.running.adapter_loader import SlotShape
from opsin_server.ipc.messages import AdapterRef
from support import adapters, engines, oracle, tiny
from support.engines import Asked
from support.oracle import Ours

IMAGE = tiny.IMAGE_TOKEN
FAMILIES = ["qwen2_vl", "mllama", "llava", "qwen", "qwen3_vl"]
ORDERS = [(name, False) for name in FAMILIES] + [("qwen2_vl", True), ("mllama", True)]
PICTURE = oracle.picture(0, 40, 30)
PROMPTS = [
    Asked([5, 6, IMAGE, 7, 8, 9], [PICTURE], count=12),
    Asked([4, 3, 11, 12, 13, 14, 15, 16, 17], count=12),
]
RANKS = (3, 5, 2)


class Case:
    """A model, adapters of it (the last leaves pictures alone), and what each says to PROMPTS."""

    def __init__(self, name: str, folder: Path) -> None:
        directory = tiny.save(tiny.FAMILIES[name].make(), folder / "model")
        options = tiny.FAMILIES[name].options
        self.ours = oracle.load(directory, options=options)
        self.refs: list[AdapterRef | None] = [None]
        self.expected = [self._said(self.ours)]
        for number, rank in enumerate(RANKS):
            adapter = adapters.random(self.ours, rank, number, pictures=number < len(RANKS) - 1)
            self.refs.append(adapters.write(folder / f"{number}.safetensors", adapter))
            other = oracle.load(directory, options=options)
            adapters.merge(other, adapter)
            self.expected.append(self._said(other))

    @staticmethod
    def _said(ours: Ours) -> list[list[int]]:
        return [engines.ask(engines.make_engine(ours), ours, [asked])[0].tokens for asked in PROMPTS]


@pytest.fixture(
    scope="module",
    params=ORDERS,
    ids=[name + "-ahead" * ahead for name, ahead in ORDERS],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    name, ahead = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "RUN_AHEAD", ahead)
        yield Case(name, tmp_path_factory.mktemp(name))


def engine_of(case: Case, slots: int, **limits: int) -> Engine:
    return engines.make_engine(case.ours, adapter_slots=slots, **limits)


def submit(engine: Engine, case: Case, chosen: list[int]) -> dict[str, list[int]]:
    """Each of PROMPTS with each of these adapters, by number. Returns what is expected, by request."""
    expected = {}
    for turn, number in enumerate(chosen):
        for prompt, asked in enumerate(PROMPTS):
            name = f"{turn}-{number}-{prompt}"
            engines.submit(engine, case.ours, name, asked, adapter=case.refs[number])
            expected[name] = case.expected[number][prompt]
    return expected


def answers(engine: Engine) -> dict[str, engines.Answer]:
    """Of all that are there, adapters that must be read included."""
    found: dict[str, engines.Answer] = {}
    while engine.sequences:
        while not engine.busy:
            time.sleep(0.001)
        engines.collect(engine.step(), found)
    return found


def said(engine: Engine) -> dict[str, list[int]]:
    return {name: answer.tokens for name, answer in answers(engine).items()}


def test_the_adapters_differ(case: Case) -> None:
    for prompt in range(len(PROMPTS)):
        assert len({tuple(said[prompt]) for said in case.expected}) == len(case.expected)


def test_each_request_is_answered_by_its_own_adapter(case: Case) -> None:
    """All in one batch, base among them; and again, out of caches."""
    engine = engine_of(case, slots=3)
    for _ in range(2):
        expected = submit(engine, case, [1, 0, 3, 2])
        assert said(engine) == expected
    assert engine.scheduler.adapters.used == 3
    assert engine.scheduler.blocks.hits > 0


def test_what_is_kept_of_pictures_is_shared_by_those_that_leave_it_alone(case: Case) -> None:
    engine = engine_of(case, slots=3, prefix_cache=False)
    hits = []
    for number in (0, 3, 1, 2, 1):
        before = engine.scheduler.encoder.hits
        expected = submit(engine, case, [number])
        assert said(engine) == expected
        hits.append(engine.scheduler.encoder.hits - before)
    assert hits == [0, 1, 0, 0, 1], "3 changes nothing of pictures; 1 and 2 each have entries of their own"


def test_more_adapters_than_slots_take_turns(case: Case) -> None:
    for slots in (1, 2):
        engine = engine_of(case, slots=slots)
        for chosen in ([1, 2, 3, 0, 1, 2, 3], [3, 3, 1]):
            expected = submit(engine, case, chosen)
            assert said(engine) == expected
        assert engine.scheduler.adapters.idle


def test_preempted_sequences_find_their_adapter_again(case: Case) -> None:
    engine = engine_of(case, slots=1, blocks=40, max_context=80, max_batch_tokens=16)
    expected = submit(engine, case, [1, 2, 0, 1, 2, 0])
    assert said(engine) == expected


def test_nobody_waits_for_an_adapter_that_is_not_there_yet(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody spins: the engine has nothing to do until it is."""
    gate, read = threading.Event(), adapter_loader.read_adapter

    def slowly(*given: object) -> object:
        gate.wait(20)
        return read(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(adapter_loader, "read_adapter", slowly)
    engine = engine_of(case, slots=2)
    waiting = submit(engine, case, [1])
    ahead = submit(engine, case, [0])
    assert {name: answer.tokens for name, answer in engines.run(engine).items()} == ahead
    assert not engine.busy
    steps = engine.stats().steps
    engine.step()
    assert engine.stats().steps == steps
    gate.set()
    while not engine.busy:
        time.sleep(0.01)
    assert said(engine) == waiting


def test_a_load_that_nobody_waits_for_any_more_is_taken_all_the_same(case: Case) -> None:
    """Otherwise whoever waits for the loader is woken for ever."""
    engine = engine_of(case, slots=1)
    assert engine.loader is not None
    submit(engine, case, [1])
    for name in list(engine.sequences):
        engine.cancel(name)
    while not engine.loader.has_results:
        engine.step()
        time.sleep(0.001)
    assert engine.busy
    engine.step()
    assert not select.select([engine.loader], [], [], 0)[0]
    assert not engine.busy
    assert engine.scheduler.adapters.idle


@pytest.mark.parametrize("fails", [False, True])
def test_who_needs_no_load_goes_on_when_another_has_ended(
    case: Case, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    gate, read = threading.Event(), adapter_loader.read_adapter
    monkeypatch.setattr(adapter_loader, "read_adapter", lambda *given: gate.wait(20) and read(*given))
    engine = engine_of(case, slots=1, max_sequences=1)
    run, calls = engine.runner.run, []

    def first_fails(batch: object) -> object:
        calls.append(batch)
        if fails and len(calls) == 1:
            raise RuntimeError("this step cannot be computed")
        return run(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.runner, "run", first_fails)
    for name, number in (("a", 0), ("b", 0), ("c", 1)):
        engines.submit(engine, case.ours, name, PROMPTS[1], adapter=case.refs[number])
    found = engines.run(engine)
    assert found["b"].tokens == case.expected[0][1]
    assert (found["a"].finish == "error") is fails
    gate.set()
    assert said(engine) == {"c": case.expected[1][1]}


def test_a_path_that_is_no_file_holds_nothing_up(case: Case, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    engine = engine_of(case, slots=2)
    for name in ("pipe", "."):
        ref = AdapterRef(name.encode() * 8, str(tmp_path / name))
        engines.submit(engine, case.ours, name, PROMPTS[1], adapter=ref)
    expected = submit(engine, case, [1])
    found = answers(engine)
    assert {name: found[name].tokens for name in expected} == expected
    assert "pipe is no file" in (found["pipe"].error or "")
    assert found["."].finish == "error"


def test_an_adapter_that_cannot_be_loaded_ends_who_asks_for_it(case: Case, tmp_path: Path) -> None:
    assert case.refs[1] is not None
    data = bytearray(Path(case.refs[1].path).read_bytes())
    data[-3] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(data)
    (tmp_path / "text.safetensors").write_bytes(b"no tensors")
    bad = {
        "changed": (case.refs[1].digest, "it was changed"),
        "text": (hashlib.sha256(b"no tensors").digest(), "no safetensors file"),
        "gone": (bytes(32), "No such file"),
    }
    engine = engine_of(case, slots=2)
    for name, (digest, _) in bad.items():
        ref = AdapterRef(digest, str(tmp_path / f"{name}.safetensors"))
        engines.submit(engine, case.ours, name, PROMPTS[1], adapter=ref)
    expected = submit(engine, case, [1, 0])
    found = answers(engine)
    assert {name: found[name].tokens for name in expected} == expected
    for name, (_, why) in bad.items():
        assert found[name].finish == "error"
        assert why in (found[name].error or "")
    assert engine.scheduler.adapters.idle


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: {k: v.int() for k, v in tensors.items()}, "torch.int32 is no float"),
        (lambda tensors: {k.replace(".0.", ".00."): v for k, v in tensors.items()}, "names no segment"),
        (lambda tensors: {k.replace(".0.", ".\u0660."): v for k, v in tensors.items()}, "names no segment"),
        (lambda tensors: {}, "it changes nothing"),
        (lambda tensors: {k: v for k, v in tensors.items() if k.endswith("a")}, r"there is no .*\.b"),
        (lambda tensors: {**tensors, "other": tensors[min(tensors)].clone()}, "neither a nor b nor scale"),
        (lambda tensors: {k: v / 0 for k, v in tensors.items()}, "not finite"),
        (lambda tensors: {k: v[:0] if k[-1] in "ab" else v for k, v in tensors.items()}, "rank 0"),
    ],
)
def test_a_file_of_another_form_is_refused(case: Case, tmp_path: Path, change: Any, why: str) -> None:
    file = tmp_path / "changed.safetensors"
    assert case.refs[1] is not None
    save_file({k: v.contiguous() for k, v in change(load_file(case.refs[1].path)).items()}, file)
    ref = AdapterRef(hashlib.sha256(file.read_bytes()).digest(), str(file))
    with pytest.raises(SpecError, match=why):
        adapter_loader.read_adapter(ref, SlotShape(linears_of(case.ours.spec, Registry()), 16, torch.float32))


def test_an_engine_without_slots_takes_none(case: Case) -> None:
    engine = engines.make_engine(case.ours)
    with pytest.raises(SpecError, match="no slots for adapters"):
        submit(engine, case, [1])
    assert not engine.busy


def test_a_failure_while_an_adapter_is_placed_leaves_nothing_to_be_relied_on(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(case, slots=2)
    place, calls = engine.runner.place, []

    def once(slot: int, weights: object) -> None:
        calls.append(slot)
        if len(calls) == 1:
            raise RuntimeError("no memory for this copy")
        place(slot, weights)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.runner, "place", once)
    submit(engine, case, [1])
    assert {answer.finish for answer in answers(engine).values()} == {"error"}
    expected = submit(engine, case, [1])
    assert said(engine) == expected
