"""`opsin migrate compare`: the new model is asked what the old one was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import openai

from opsin_client.migrate.answers import Compared
from opsin_client.migrate.folder import SnapshotFolder
from opsin_client.migrate.page import ComparedJob
from opsin_client.migrate.plan import MIGRATED_FROM, as_data_url
from opsin_client.migrate.problems import MigrateError
from opsin_client.migrate.progress import Bars
from opsin_client.migrate.rows import Question, question_of, read_rows, with_pictures
from opsin_client.say import print_line
from opsin_client.sentences import refusal
from opsin_client.visible import visible

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

SHOWN = 100  # characters of an answer on a line


def new_jobs(client: openai.OpenAI) -> dict[str, FineTuningJob]:
    """By the jobs of the source that they were made again of: the newest that has a model, or else the newest."""
    found: dict[str, FineTuningJob] = {}
    for job in client.fine_tuning.jobs.list(limit=100):
        origin = (job.metadata or {}).get(MIGRATED_FROM)
        if origin is not None and (
            origin not in found or (job.fine_tuned_model and not found[origin].fine_tuned_model)
        ):
            found[origin] = job
    return found


class Comparison:
    """most_tokens: of an answer, as the old ones had them."""

    def __init__(self, client: openai.OpenAI, folder: SnapshotFolder, most_tokens: int, bars: Bars) -> None:
        self._client, self._folder, self._most_tokens, self._bars = client, folder, most_tokens, bars

    def compare(self, job: Mapping[str, Any], model: str) -> ComparedJob:
        """Prints example by example. model: the new one."""
        print_line(visible(f"{job['id']}: {job.get('fine_tuned_model')} -> {model}"))
        old = {answer["line"]: answer for answer in self._folder.answers(str(job["id"]))}
        found = []
        for question in self._bars.over(f"asking {visible(model)}", self._questions(old), len(old)):
            answer = old[question.line]
            new, why_not = self._ask(model, question)
            one = Compared(
                question.line,
                question.messages,
                question.reference,
                answer.get("answer"),
                new,
                bool(answer.get("seen")),
                why_not,
            )
            found.append(one)
            print_line(_line(one))
        return ComparedJob(str(job["id"]), str(job.get("fine_tuned_model")), model, found)

    def _questions(self, old: Mapping[int, Mapping[str, Any]]) -> Iterator[Question]:
        files = {str(answer["file"]) for answer in old.values()}
        for file_id in files:
            for row in read_rows(self._folder.content(file_id)):
                if row.line in old and (question := question_of(row)) is not None:
                    yield question

    def _ask(self, model: str, question: Question) -> tuple[str | None, str]:
        """The answer, or why there is none. Raises for what every other question would meet as well."""
        messages = with_pictures(question.messages, lambda url: as_data_url(self._folder, url))
        try:
            said = self._client.chat.completions.create(
                model=model, messages=messages, temperature=0, max_tokens=self._most_tokens
            )
        except openai.NotFoundError as error:
            raise MigrateError(f"{model} is not there (opsin migrate create makes it): {refusal(error)}") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise
        except openai.APIStatusError as error:
            self._bars.note(f"line {question.line}: {refusal(error)}")
            return None, refusal(error)
        return said.choices[0].message.content or "", ""


def _line(one: Compared) -> str:
    cells = [f"line {one.line}", f"expected {_short(one.reference)}"]
    cells.append(f"old {'=' if one.old_right else 'x'} {_short(one.old)}")
    cells.append(
        "new - (not answered)" if one.new is None else f"new {'=' if one.new_right else 'x'} {_short(one.new)}"
    )
    return "\t".join(cells)


def _short(text: str | None) -> str:
    if text is None:
        return "(none)"
    line = " ".join(text.split())
    return visible(line if len(line) <= SHOWN else line[: SHOWN - 3] + "...")
