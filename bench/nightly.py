"""The long tests' results as a table: reads the XML of `make nightly`, writes docs/benchmarks/nightly-<machine>.md."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import machine
import report


def rows(path: Path) -> list[list[str]]:
    """Name, outcome, seconds, and what the test recorded as its result; one row for all cases of a test."""
    cases: dict[str, list[ET.Element]] = {}
    for case in ET.parse(path).getroot().iter("testcase"):
        cases.setdefault(case.get("name", "").partition("[")[0], []).append(case)
    return [[name.removeprefix("test_").replace("_", " "), *_summary(found)] for name, found in cases.items()]


def _summary(cases: list[ET.Element]) -> tuple[str, str, str]:
    failed = sum(any(child.tag in ("failure", "error") for child in case) for case in cases)
    seconds = sum(float(case.get("time", 0)) for case in cases)
    said = [p.get("value", "") for case in cases for p in case.iter("property") if p.get("name") == "result"]
    outcome = f"{failed} FAILED" if failed else "passed"
    return outcome, f"{seconds:.0f}", "; ".join([*([f"{len(cases)} cases"] if len(cases) > 1 else []), *said])


def main() -> None:
    described = machine.describe()
    header = report.header("nightly", datetime.now(UTC), described)
    parts = [f"# Long tests: {described['kind']}", report.about(header), "`make nightly`; seconds on this machine."]
    text = "\n\n".join([*parts, report.table(["test", "outcome", "s", "result"], rows(Path(sys.argv[1])))]) + "\n"
    out = report.default_path("nightly", quick=False).with_suffix(".md")
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
