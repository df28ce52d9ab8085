from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sdk.verdict import NOT_ASKED, PASSED, SKIPPED, Exemption, Outcome, Share, judge, read_exemptions, read_outcomes

LISTED = Exemption(("test_files.*.test_*_create",), "not supported", "there is none")
AS_LISTED = Outcome("test_files.TestFiles.test_raw_create[loose]", "400: not supported here")
REPORT = """<testsuites><testsuite>
<testcase classname="tests.api_resources.test_files.TestFiles" name="test_method_list[loose]">
<properties><property name="asked" value="2"/></properties></testcase>
<testcase classname="tests.api_resources.test_files.TestFiles" name="test_raw_create[loose]">
<failure message="400">not supported</failure></testcase>
<testcase classname="tests.api_resources.test_files.TestFiles" name="test_method_content[aiohttp]">
<skipped/></testcase>
</testsuite></testsuites>"""


def test_what_is_as_it_should_be_is_counted():
    others = [Outcome("a.A.b"), Outcome("a.A.c", asked=0), Outcome("a.A.d", skipped=True)]
    verdict = judge([AS_LISTED, *others], [LISTED])
    assert (verdict.counts, verdict.problems) == ({PASSED: 1, NOT_ASKED: 1, SKIPPED: 1}, [])
    assert verdict.listed == {LISTED.reason: 1}
    assert "    1  listed: there is none" in str(verdict)


def test_shares_are_of_what_asked_the_server():
    listed = Outcome("chat.test_x.TestX.test_create_with_all_params[strict]", "no")
    others = [Outcome("chat.test_x.TestX.a", asked=n) for n in (0, 1, 2)]
    verdict = judge([*others, listed, Outcome("test_y.TestY.b")], [Exemption(("*",), "no", "none", ("strict",))])
    assert verdict.shares == {"chat/test_x.py": Share(3, 2, 1), "test_y.py": Share(1, 1, 0)}
    assert (verdict.total, str(verdict.total)) == (Share(4, 3, 1), "3 of 4, 75.0%")
    assert verdict.problems == []


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ([AS_LISTED, Outcome("test_files.TestFiles.test_method_list[strict]", "no")], "fails, and is not listed"),
        ([Outcome(AS_LISTED.name)], "passes, and is listed"),
        ([Outcome(AS_LISTED.name, skipped=True)], "is skipped, and is listed"),
        ([Outcome(AS_LISTED.name, "500: Internal Server Error")], "does not say 'not supported'"),
        ([Outcome("test_files.TestFiles.test_method_list[loose]")], "no test is called so"),
    ],
)
def test_what_is_not_is_a_problem(outcomes: Sequence[Outcome], words: str):
    (problem,) = judge(outcomes, [LISTED]).problems
    assert words in problem


def test_a_report_is_read(tmp_path: Path):
    (report := tmp_path / "report.xml").write_text(REPORT)
    listed, refused, skipped = read_outcomes(report)
    assert listed == Outcome("test_files.TestFiles.test_method_list[loose]", asked=2)
    assert refused == Outcome("test_files.TestFiles.test_raw_create[loose]", "400\nnot supported", asked=0)
    assert skipped.skipped


def test_what_is_listed_has_a_reason():
    found = read_exemptions(Path(__file__).parent / "exemptions.toml")
    assert all(one.tests and one.says and one.reason for one in found)
