"""What came out of the SDK's tests, against the list of those that cannot pass here. The list is to stay true: one on
it that passes, or fails with other words than it says, is as wrong as one that fails and is not on it."""

from __future__ import annotations

import tomllib
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ASKED = "asked"  # a property of the report: how often a test asked the server
PASSED, NOT_ASKED = "passed", "passed without a request to the server"
SKIPPED = "skipped by the SDK itself"


ALL_PARAMETERS = "_with_all_params"  # in the name of a test that sends all fields at once


@dataclass(frozen=True)
class Exemption:
    """tests: patterns of their names without parameters. says: a part of how they fail. modes: those of the client in
    which they do; empty: all."""

    tests: tuple[str, ...]
    says: str
    reason: str
    modes: tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        mode = name.partition("[")[2].removesuffix("]")
        return (not self.modes or mode in self.modes) and any(_fits(name, pattern) for pattern in self.tests)


@dataclass(frozen=True)
class Outcome:
    """failure: None for a test that did not fail. asked: how often it asked the server."""

    name: str
    failure: str | None = None
    skipped: bool = False
    asked: int = 1

    @property
    def file(self) -> str:
        return self.name.partition(".Test")[0].replace(".", "/") + ".py"


@dataclass
class Share:
    """Of the tests that asked the server. all_parameters: of those that did not pass, how many send all fields."""

    asked: int = 0
    passed: int = 0
    all_parameters: int = 0

    def add(self, outcome: Outcome) -> None:
        self.asked += 1
        self.passed += outcome.failure is None
        self.all_parameters += outcome.failure is not None and ALL_PARAMETERS in outcome.name

    def __str__(self) -> str:
        return f"{self.passed} of {self.asked}, {self.passed / self.asked:.1%}"


@dataclass(frozen=True)
class Verdict:
    """counts: tests by what became of them. listed: those that failed as they may, by the reason. shares: by file."""

    counts: Mapping[str, int]
    listed: Mapping[str, int]
    problems: Sequence[str]
    shares: Mapping[str, Share]

    @property
    def total(self) -> Share:
        shares = self.shares.values()
        return Share(*(sum(getattr(one, name) for one in shares) for name in ("asked", "passed", "all_parameters")))

    def __str__(self) -> str:
        lines = [f"{number:5}  {what}" for what, number in self.counts.items()]
        lines += [f"{number:5}  listed: {reason}" for reason, number in self.listed.items()]
        lines += [f"{share}  {file}" for file, share in self.shares.items()]
        return "\n".join([*lines, *self.problems])


def read_exemptions(path: Path) -> list[Exemption]:
    found = tomllib.loads(path.read_text())["exemption"]
    return [Exemption(tuple(one["tests"]), one["says"], one["reason"], tuple(one.get("modes", ()))) for one in found]


def read_outcomes(junit: Path) -> list[Outcome]:
    """Named as in test_files.TestFiles.test_method_list[loose]."""
    return [_outcome(case) for case in ET.parse(junit).getroot().iter("testcase")]


def judge(outcomes: Sequence[Outcome], exemptions: Sequence[Exemption]) -> Verdict:
    counts, listed, problems, shares = Counter[str](), Counter[str](), [], defaultdict[str, Share](Share)
    for outcome in outcomes:
        if outcome.asked and not outcome.skipped:
            shares[outcome.file].add(outcome)
        exemption = next((one for one in exemptions if one.covers(outcome.name)), None)
        if (problem := _problem(outcome, exemption)) is not None:
            problems.append(f"{outcome.name} {problem}")
        elif exemption is not None:
            listed[exemption.reason] += 1
        elif outcome.skipped:
            counts[SKIPPED] += 1
        else:
            counts[PASSED if outcome.asked else NOT_ASKED] += 1
    names = [outcome.name for outcome in outcomes]
    patterns = [pattern for one in exemptions for pattern in one.tests]
    unused = [one for one in patterns if not any(_fits(name, one) for name in names)]
    problems += [f"{one} is listed, and no test is called so" for one in unused]
    return Verdict(counts, listed, problems, shares)


def _problem(outcome: Outcome, exemption: Exemption | None) -> str | None:
    if exemption is None:
        return None if outcome.failure is None else f"fails, and is not listed:\n{outcome.failure}"
    if outcome.failure is None:
        return f"{'is skipped' if outcome.skipped else 'passes'}, and is listed: {exemption.reason}"
    return None if exemption.says in outcome.failure else f"does not say '{exemption.says}':\n{outcome.failure}"


def _fits(name: str, pattern: str) -> bool:
    """name: with or without parameters, which no pattern has."""
    return fnmatchcase(name.partition("[")[0], pattern)


def _outcome(case: ET.Element) -> Outcome:
    name = f"{case.get('classname', '').removeprefix('tests.api_resources.')}.{case.get('name')}"
    bad = next((child for child in case if child.tag in ("failure", "error")), None)
    failure = None if bad is None else f"{bad.get('message', '')}\n{bad.text or ''}"
    asked = next((int(one.get("value", 0)) for one in case.iter("property") if one.get("name") == ASKED), 0)
    return Outcome(name, failure, any(child.tag == "skipped" for child in case), asked)
