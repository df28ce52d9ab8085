"""Adapters, versions and aliases: against a plain model of them, by hand, and by many threads at once."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from opsin_server.errors import BadRequest, NotFound, OpsinError
from opsin_server.storage.backup import TABLES
from opsin_server.storage.records import SourceFile
from opsin_server.storage.state import State
from opsin_server.storage_config import StorageConfig
from support.stored import TENANT, add, new_version, outcome, rows

NAMES = st.sampled_from(["a", "b", "ü"])
TENANTS = st.sampled_from(["default", "other"])
VERSIONS = st.integers(1, 6)


class Model:
    """What the records should say, for one tenant."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}
        self.versions: dict[str, dict[int, str]] = {}  # of living adapters: number -> digest
        self.stacks: dict[str, list[int]] = {}
        self.pinned: dict[str, bool] = {}
        self.used: dict[str, float] = {}
        self.aliases: dict[str, tuple[str | None, int | None]] = {}

    def check(self, name: str, version: int | None = None) -> None:
        if name not in self.versions or (version is not None and version not in self.versions[name]):
            raise NotFound("")

    def current(self, name: str) -> int | None:
        return self.stacks[name][-1] if self.stacks[name] else None

    def add(self, name: str, digest: str, promote: bool) -> int:
        number = self.next[name] = self.next.get(name, 0) + 1
        self.versions.setdefault(name, {})[number] = digest
        self.stacks.setdefault(name, [])
        self.pinned.setdefault(name, False)
        if promote:
            self.promote(name, number)
        return number

    def promote(self, name: str, version: int) -> None:
        self.check(name, version)
        if self.current(name) != version:
            self.stacks[name].append(version)

    def rollback(self, name: str) -> None:
        self.check(name)
        if len(self.stacks[name]) < 2:
            raise BadRequest("")
        self.stacks[name].pop()

    def pin(self, name: str, pinned: bool) -> None:
        self.check(name)
        self.pinned[name] = pinned

    def delete_version(self, name: str, version: int) -> None:
        self.check(name, version)
        if self.current(name) == version or (name, version) in self.aliases.values():
            raise BadRequest("")
        del self.versions[name][version]
        left: list[int] = []
        for one in self.stacks[name]:
            if one != version and left[-1:] != [one]:
                left.append(one)
        self.stacks[name] = left

    def delete(self, name: str) -> None:
        self.check(name)
        if name in {adapter for adapter, _ in self.aliases.values()}:
            raise BadRequest("")
        for table in (self.versions, self.stacks, self.pinned):
            del table[name]
        self.used.pop(name, None)

    def touch(self, names: set[str], at: float) -> None:
        for name in names & self.versions.keys():
            self.used[name] = max(at, self.used.get(name, at))

    def set_alias(self, alias: str, adapter: str | None, version: int | None) -> None:
        if adapter is None and version is not None:
            raise BadRequest("")
        if adapter is not None:
            self.check(adapter, version)
        self.aliases[alias] = (adapter, version)

    def delete_alias(self, alias: str) -> None:
        if self.aliases.pop(alias, None) is None:
            raise NotFound("")


class Records(RuleBasedStateMachine):
    """Whatever is asked of the records, they say what the model says, and refuse what it refuses."""

    made: Path
    database: str | None = None

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        if self.database is None:
            shutil.copytree(self.made, f"{self.folder.name}/data")
        self.state = State.open(StorageConfig(data_dir=f"{self.folder.name}/data", database=self.database))
        if self.database is not None:
            with self.state.database.write() as session:
                for table in reversed(TABLES):
                    session.execute(table.delete())
        self.models = {"default": Model(), "other": Model()}
        self.facts = {tenant: new_version(self.state, b"bytes", tenant) for tenant in self.models}

    def same(self, expected: Callable[[], Any], actual: Callable[[], Any]) -> None:
        assert outcome(expected) is outcome(actual)

    @rule(tenant=TENANTS, name=NAMES, promote=st.booleans(), rank=st.integers(1, 64))
    def add(self, tenant: str, name: str, promote: bool, rank: int) -> None:
        facts = replace(self.facts[tenant], rank=rank)
        number = self.models[tenant].add(name, facts.digest, promote)
        added = self.state.adapters.add_version(tenant, name, facts, promote=promote)
        assert (added.adapter, added.version, added.facts) == (name, number, facts)
        assert self.state.adapters.version(tenant, name, number) == added

    @rule(tenant=TENANTS, name=NAMES, version=VERSIONS)
    def promote(self, tenant: str, name: str, version: int) -> None:
        self.same(
            lambda: self.models[tenant].promote(name, version),
            lambda: self.state.adapters.promote(tenant, name, version),
        )

    @rule(tenant=TENANTS, name=NAMES)
    def rollback(self, tenant: str, name: str) -> None:
        self.same(lambda: self.models[tenant].rollback(name), lambda: self.state.adapters.rollback(tenant, name))

    @rule(tenant=TENANTS, name=NAMES, pinned=st.booleans())
    def pin(self, tenant: str, name: str, pinned: bool) -> None:
        self.same(lambda: self.models[tenant].pin(name, pinned), lambda: self.state.adapters.pin(tenant, name, pinned))

    @rule(tenant=TENANTS, names=st.sets(NAMES), at=st.floats(0, 1e10))
    def touch(self, tenant: str, names: set[str], at: float) -> None:
        self.models[tenant].touch(names, at)
        self.state.adapters.touch(tenant, names, at)

    @rule(tenant=TENANTS, name=NAMES, version=VERSIONS)
    def delete_version(self, tenant: str, name: str, version: int) -> None:
        self.same(
            lambda: self.models[tenant].delete_version(name, version),
            lambda: self.state.adapters.delete_version(tenant, name, version),
        )

    @rule(tenant=TENANTS, name=NAMES)
    def delete(self, tenant: str, name: str) -> None:
        self.same(lambda: self.models[tenant].delete(name), lambda: self.state.adapters.delete_adapter(tenant, name))

    @rule(
        tenant=TENANTS,
        alias=st.sampled_from(["x", "y"]),
        adapter=st.none() | NAMES,
        version=st.none() | VERSIONS,
    )
    def alias(self, tenant: str, alias: str, adapter: str | None, version: int | None) -> None:
        self.same(
            lambda: self.models[tenant].set_alias(alias, adapter, version),
            lambda: self.state.aliases.set(tenant, alias, adapter, version),
        )

    @rule(tenant=TENANTS, alias=st.sampled_from(["x", "y"]))
    def delete_alias(self, tenant: str, alias: str) -> None:
        self.same(lambda: self.models[tenant].delete_alias(alias), lambda: self.state.aliases.delete(tenant, alias))

    @precondition(lambda self: self.database is None)
    @rule()
    def restart(self) -> None:
        self.state.close()
        self.state = State.open(StorageConfig(data_dir=f"{self.folder.name}/data"))

    @invariant()
    def the_two_say_the_same(self) -> None:
        if not hasattr(self, "models"):  # before `begin`
            return
        for tenant, model in self.models.items():
            found = self.state.adapters.all(tenant)
            assert {a.name: (a.current_version, a.pinned, a.last_used) for a in found} == {
                name: (model.current(name), model.pinned[name], model.used.get(name)) for name in model.versions
            }
            for name, versions in model.versions.items():
                numbers = {v.version: v.facts.digest for v in self.state.adapters.versions(tenant, name)}
                assert numbers == versions
            aliases = {a.alias: (a.adapter, a.version) for a in self.state.aliases.all(tenant)}
            assert aliases == model.aliases

    def teardown(self) -> None:
        if hasattr(self, "state"):
            self.state.close()
            self.folder.cleanup()


def stateful(made: Path, database: str | None, examples: int, steps: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    found = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, suppress_health_check=checks
    )
    run_state_machine_as_test(type("Records", (Records,), {"made": made, "database": database}), settings=found)


def test_the_records_against_a_model(made: Path, database: str | None):
    stateful(made, database, 5, 20)


@pytest.mark.nightly
def test_the_records_against_a_model_at_length(made: Path, database: str | None):
    stateful(made, database, 100, 50)


# ----------------------------------------------------------------------------------------------------- by hand


def test_numbers_are_never_used_again(state: State):
    for expected in (1, 2):
        assert add(state, "a", b"1").version == expected
    state.adapters.delete_adapter(TENANT, "a")
    with pytest.raises(NotFound, match="there is no adapter a"):
        state.adapters.get(TENANT, "a")
    assert add(state, "a", b"1").version == 3
    state.adapters.delete_version(TENANT, "a", add(state, "a", b"1", promote=False).version)
    assert add(state, "a", b"1").version == 5
    assert [version.version for version in state.adapters.versions(TENANT, "a")] == [3, 5]


def test_two_rollbacks_go_back_twice(state: State):
    for _ in range(4):
        add(state, "a", b"1")
    assert [state.adapters.rollback(TENANT, "a").current_version for _ in range(2)] == [3, 2]
    assert state.adapters.promote(TENANT, "a", 4).current_version == 4
    assert [state.adapters.rollback(TENANT, "a").current_version for _ in range(2)] == [2, 1]
    with pytest.raises(BadRequest, match="no version of the adapter a was current before"):
        state.adapters.rollback(TENANT, "a")


def test_a_deleted_version_is_no_way_back(state: State):
    for _ in range(3):
        add(state, "a", b"1")
    state.adapters.promote(TENANT, "a", 1)  # 1 2 3 1
    state.adapters.delete_version(TENANT, "a", 3)
    assert state.adapters.rollback(TENANT, "a").current_version == 2
    state.adapters.promote(TENANT, "a", 1)  # 1 2 1
    state.adapters.delete_version(TENANT, "a", 2)
    with pytest.raises(BadRequest):
        state.adapters.rollback(TENANT, "a")


def test_everything_about_a_version_comes_back(state: State):
    facts = new_version(state, b"1", base_digest="sha256:ab", pixel_budget={"max_pixels": 12}, warnings=("x", "ü"))
    added = state.adapters.add_version(TENANT, "a", facts, promote=False)
    assert state.adapters.versions(TENANT, "a") == [added]
    assert added.facts == facts
    assert state.adapters.get(TENANT, "a").current_version is None


def test_a_version_needs_its_files(state: State):
    facts = new_version(state, b"1")
    absent = replace(facts, source={"x": SourceFile("f" * 64, 1)})
    for tenant, new in ((TENANT, absent), ("other", facts)):
        with pytest.raises(NotFound, match="there is no stored file"):
            state.adapters.add_version(tenant, "a", new, promote=True)
    assert rows(state)["adapters"] == []


@pytest.mark.parametrize("name", ["", "a" * 257, "a\0", "\x1b[31m"])
def test_names_are_bounded(state: State, name: str):
    facts = new_version(state, b"1")
    with pytest.raises(BadRequest, match="the adapter's name"):
        state.adapters.add_version(TENANT, name, facts, promote=True)
    with pytest.raises(BadRequest, match="the alias"):
        state.aliases.set(TENANT, name, None)


def test_an_alias_holds_what_it_names(state: State):
    add(state, "a", b"1")
    add(state, "a", b"2")
    state.aliases.set(TENANT, "old", "a", 1)
    state.aliases.set(TENANT, "newest", "a")
    with pytest.raises(BadRequest, match="the alias old names version 1 of the adapter a"):
        state.adapters.delete_version(TENANT, "a", 1)
    with pytest.raises(BadRequest, match="the alias newest names the adapter a"):
        state.adapters.delete_adapter(TENANT, "a")
    moved = state.aliases.set(TENANT, "old", None)
    assert (moved.kind, moved.adapter, moved.version) == ("base", None, None)
    state.adapters.delete_version(TENANT, "a", 1)
    state.aliases.delete(TENANT, "newest")
    state.adapters.delete_adapter(TENANT, "a")
    with pytest.raises(NotFound, match="there is no adapter a"):
        state.aliases.set(TENANT, "x", "a")


# ------------------------------------------------------------------------------------------------ many at once


def together(*acts: Callable[[], None]) -> list[BaseException]:
    """What they raise when they all begin at once."""
    barrier, raised = threading.Barrier(len(acts)), []

    def run(act: Callable[[], None]) -> None:
        barrier.wait()
        try:
            act()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_versions_added_together_have_numbers_of_their_own(state: State):
    facts, numbers = new_version(state, b"1"), []

    def some() -> None:
        numbers.extend(state.adapters.add_version(TENANT, "a", facts, promote=True).version for _ in range(5))

    assert together(*[some] * 6) == []
    assert sorted(numbers) == list(range(1, 31))
    assert len(rows(state)["adapter_promotions"]) == 30
    seen = [state.adapters.get(TENANT, "a").current_version]
    seen += [state.adapters.rollback(TENANT, "a").current_version for _ in range(29)]
    assert sorted(seen) == list(range(1, 31))


def test_changes_made_together_are_all_made(state: State):
    """Each reads before it writes: none writes over what it has not seen."""
    for _ in range(2):
        add(state, "a", b"1")

    def some() -> None:
        for _ in range(4):
            state.adapters.promote(TENANT, "a", 1)
            state.adapters.promote(TENANT, "a", 2)

    assert together(*[some] * 4) == []
    stack = [row[3] for row in rows(state)["adapter_promotions"]]
    assert all(below != above for below, above in pairwise(stack))
    assert state.adapters.get(TENANT, "a").current_version == stack[-1]


def test_servers_of_one_database_take_turns(postgres_url: str, tmp_path: Path):
    url = postgres_url
    states = [State.open(StorageConfig(data_dir=str(tmp_path / str(n)), database=url)) for n in range(3)]
    facts = new_version(states[0], b"1")
    numbers: list[int] = []

    def some(state: State) -> None:
        for _ in range(5):
            numbers.append(state.adapters.add_version(TENANT, "a", facts, promote=True).version)
            state.adapters.touch(TENANT, ["a", "b"], 5.0)

    assert together(*[lambda state=state: some(state) for state in states]) == []
    assert sorted(numbers) == list(range(1, 16))
    for state in states:
        state.close()


def test_what_is_deleted_is_not_named_by_who_came_at_the_same_time(state: State):
    """An alias and the deletion of its target, a version and the collection of its files: one of the two wins."""
    for round_ in range(4):
        add(state, "a", b"1")
        facts = new_version(state, b"2 %d" % round_)
        raised = together(
            lambda: state.aliases.set(TENANT, "x", "a"),
            lambda: state.adapters.delete_adapter(TENANT, "a"),
            lambda facts=facts: state.adapters.add_version(TENANT, "b", facts, promote=True),
            lambda: state.blobs.collect(grace=-1000),
        )
        assert all(isinstance(error, OpsinError) for error in raised), raised
        living = {adapter.name for adapter in state.adapters.all(TENANT)}
        assert {alias.adapter for alias in state.aliases.all(TENANT)} <= living
        for version in state.adapters.versions(TENANT, "b") if "b" in living else []:
            assert state.blobs.verify(TENANT, version.facts.digest)
        if state.aliases.all(TENANT):
            state.aliases.delete(TENANT, "x")
