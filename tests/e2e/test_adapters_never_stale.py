"""Whatever is loaded, moved and deleted while requests run, every answer is that of the version which it names."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from support.adapter_answers import BASE, PROMPTS, Adapters, ask, kill_engine, upload
from support.served import Served


class Machine:
    """Draws what happens next, by a seed, and knows what names must mean."""

    def __init__(self, server: Served, adapters: Adapters, seed: int) -> None:
        self.server, self.adapters, self.chance = server, adapters, random.Random(seed)
        self.http = httpx.Client(base_url=server.url, trust_env=False, timeout=60)
        self.current: dict[str, list[int]] = {}  # adapter -> stack of versions that were current
        self.versions: dict[str, dict[int, int]] = {}  # adapter -> version -> variant
        self.aliases: dict[str, str | None] = {}
        self.answered: set[str] = set()  # by which versions

    def step(self) -> None:
        names = sorted(self.current)
        actions = [self.load, *([self.chat] * 4)]
        if names:
            actions += [self.promote, self.roll_back, self.alias, self.unload]
        if self.chance.random() < 0.03:
            actions = [self.kill]
        self.chance.choice(actions)()

    def load(self) -> None:
        name, variant = self.chance.choice("abc"), self.chance.randrange(6)
        said = upload(self.server.url, name, self.adapters.archives[variant], self.http)
        versions, stack = self.versions.setdefault(name, {}), self.current.setdefault(name, [])
        versions[said["version"]] = variant
        if not stack or stack[-1] != said["version"]:
            stack.append(said["version"])

    def promote(self) -> None:
        name = self.chance.choice(sorted(self.current))
        version = self.chance.choice(sorted(self.versions[name]))
        self.http.post(f"/v1/adapters/{name}/promote", json={"version": version}).raise_for_status()
        if self.current[name][-1] != version:
            self.current[name].append(version)

    def roll_back(self) -> None:
        name = self.chance.choice(sorted(self.current))
        answer = self.http.post(f"/v1/adapters/{name}/rollback")
        assert answer.is_success == (len(self.current[name]) > 1)
        if answer.is_success:
            self.current[name].pop()

    def alias(self) -> None:
        alias, target = self.chance.choice(("gpt-4o", "x")), self.chance.choice([*sorted(self.current), None])
        body = {"alias": alias, "target": target or BASE}
        self.http.post("/v1/aliases", json=body).raise_for_status()
        self.aliases[alias] = target

    def unload(self) -> None:
        name = self.chance.choice(sorted(self.current))
        answer = self.http.delete(f"/v1/adapters/{name}")
        assert answer.is_success == (name not in self.aliases.values())
        if answer.is_success:
            del self.current[name], self.versions[name]

    def kill(self) -> None:
        kill_engine(self.server)

    def chat(self) -> None:
        """A few at the same time, of base, names, versions and aliases."""
        pinned = [f"{name}@v{version}" for name, found in self.versions.items() for version in found]
        names = [BASE, *self.current, *self.aliases, *self.chance.sample(sorted(pinned), min(2, len(pinned)))]
        asked = [(self.chance.choice(names), self.chance.randrange(len(PROMPTS))) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda one: ask(self.server.url, *one), asked))
        for (name, prompt), answer in zip(asked, answers, strict=True):
            assert answer.label == self.label(name), name
            self.adapters.check(answer, prompt)
            self.answered.add(answer.label)

    def label(self, name: str) -> str:
        name = self.aliases.get(name, name) or BASE
        return "" if name == BASE else name if "@" in name else f"{name}@v{self.current[name][-1]}"


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.nightly) for n in range(1, 21))])
def test_no_answer_is_stale(server: Served, http: httpx.Client, adapters: Adapters, seed: int) -> None:
    machine = Machine(server, adapters, seed)
    try:
        for _ in range(4):
            machine.load()  # there is something to be stale from the beginning
        for _ in range(40):
            machine.step()
    finally:
        machine.http.close()
    assert len(machine.answered) > 3, "the base, and versions of several adapters"


@pytest.mark.parametrize(
    ("swaps", "streams"), [(25, 8), pytest.param(1000, 16, marks=pytest.mark.nightly)], ids=["some", "a thousand"]
)
def test_swaps_under_load(server: Served, http: httpx.Client, adapters: Adapters, swaps: int, streams: int) -> None:
    """Each swap with other weights than the last: no answer fails, none is of another version than it says."""
    upload(server.url, "hot", adapters.archives[0])
    stop, failures, answered = threading.Event(), [], [0] * streams

    def stream(number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(trust_env=False, timeout=120) as client:
            while not stop.is_set():
                prompt = chance.randrange(len(PROMPTS))
                try:
                    adapters.check(ask(server.url, chance.choice(("hot", "hot", BASE)), prompt, client), prompt)
                    answered[number] += 1
                except Exception as error:  # a thread's own
                    failures.append(error)
                    return

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    seen = set()
    for number in range(1, swaps + 1):
        seen.add(upload(server.url, "hot", adapters.archives[number % 6])["version"])
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(120)
    assert not failures
    assert len(seen) == swaps
    assert min(answered) > 0
