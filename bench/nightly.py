"""The long tests' results as a table: reads the XML of `make nightly`, writes docs/benchmarks/nightly-<machine>.md."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import machine
import report


def rows(path: Path) -> list[list[str]]:
    """Name, outcome, seconds, and what the test recorded as its result."""
    found = []
    for case in ET.parse(path).getroot().iter("testcase"):
        failed = any(child.tag in ("failure", "error") for child in case)
        said = [p.get("value", "") for p in case.iter("property") if p.get("name") == "result"]
        name = case.get("name", "").removeprefix("test_").replace("_", " ")
        found.append([name, "FAILED" if failed else "passed", f"{float(case.get('time', 0)):.0f}", "; ".join(said)])
    return found


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
