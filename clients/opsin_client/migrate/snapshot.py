"""`opsin migrate snapshot`: what an account has of fine-tuning, saved while it is still there. Taken again, it goes on
where it was interrupted."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from opsin_client.migrate.folder import SnapshotFolder, checked_id
from opsin_client.migrate.pictures import NoPictureError, fetch_picture
from opsin_client.migrate.problems import GoneError, LimitError, MigrateError, RefusedError
from opsin_client.migrate.progress import Bars
from opsin_client.migrate.rows import Question, is_http, picture_urls, question_of, read_rows
from opsin_client.migrate.source import Source, in_path

ENDED = ("succeeded", "failed", "cancelled")
JOBS = "fine_tuning/jobs"


@dataclass(frozen=True)
class Wanted:
    """jobs: ids; none: all. questions: of each job, that its model is asked. most_file: bytes of one file."""

    jobs: tuple[str, ...] = ()
    questions: int = 200
    most_tokens: int = 512
    most_file: int = 2**30
    pictures: bool = True
    allow_hosts: tuple[str, ...] = ()


@dataclass
class Counts:
    """What the snapshot holds."""

    jobs: int = 0
    files: int = 0
    lost_files: int = 0
    pictures: int = 0
    lost_pictures: int = 0
    answers: int = 0

    def __str__(self) -> str:
        no_files = f" ({self.lost_files:,} could not be had)" if self.lost_files else ""
        lost = f" ({self.lost_pictures:,} could not be had)" if self.lost_pictures else ""
        return (
            f"{self.jobs:,} jobs, {self.files:,} files{no_files}, {self.pictures:,} pictures behind URLs{lost}, "
            f"{self.answers:,} answers of the old models"
        )


class Snapshot:
    def __init__(self, source: Source, folder: SnapshotFolder, wanted: Wanted, bars: Bars) -> None:
        self._source, self._folder, self._wanted, self._bars = source, folder, wanted, bars
        self.counts = Counts()
        self._lost: set[str] = set()  # files that cannot be had

    def take(self) -> None:
        """Raises MigrateError; what was saved by then is not asked for again."""
        self._folder.check_free(self._source.url)
        jobs = list(self._bars.over("listing jobs", self._jobs()))
        self._folder.claim(self._source.url)  # only now: of a wrong address nothing is left
        for job in self._bars.over("saving jobs", jobs, len(jobs)):
            self._save_job(job)
        saved = [job for job in self._folder.jobs() if not self._wanted.jobs or job["id"] in self._wanted.jobs]
        if self._wanted.pictures:
            self._save_pictures(saved)
        if self._wanted.questions:
            for job in self._bars.over("asking the old models", saved, len(saved)):
                self._ask(job)
        self._count(saved)

    # ------------------------------------------------------------------------------------------------------ jobs

    def _jobs(self) -> Iterator[dict[str, Any]]:
        if self._wanted.jobs:
            yield from (self._source.object(f"{JOBS}/{in_path(checked_id(job))}") for job in self._wanted.jobs)
            return
        try:
            yield from self._source.items(JOBS)
        except LimitError as error:
            self._bars.note(f"{error}: the jobs behind that are left out")

    def _save_job(self, job: dict[str, Any]) -> None:
        """Its description comes last: with it, all of it is there."""
        try:
            folder = self._folder.job(checked_id(job.get("id")))
        except MigrateError as error:
            self._bars.note(f"{error}: left out")
            return
        path = folder / "job.json"
        for name in ("training_file", "validation_file"):
            if job.get(name) is not None:
                self._save_file(job[name])
        if path.is_file() and self._folder.read_json(path).get("status") in ENDED:
            return
        self._save_list(job["id"], "events")
        self._save_list(job["id"], "checkpoints")
        results = job.get("result_files")
        for file_id in results if isinstance(results, list) else []:
            self._save_file(file_id)
            self._save_metrics(job["id"], file_id)
        self._folder.write_json(path, job)

    def _save_list(self, job_id: str, name: str) -> None:
        found: list[dict[str, Any]] = []
        try:
            found.extend(self._source.items(f"{JOBS}/{in_path(job_id)}/{name}"))
        except (GoneError, LimitError) as error:
            self._bars.note(f"{name} of {job_id}: {error}")
        self._folder.write_lines(self._folder.job(job_id) / f"{name}.jsonl", found)

    def _save_file(self, file_id: object) -> None:
        """Its description comes last. One that cannot be had is noted, and asked for again the next time."""
        try:
            described = self._folder.file(checked_id(file_id)) / "file.json"
        except MigrateError as error:
            self._bars.note(f"{error}: left out")
            return
        if described.is_file() or file_id in self._lost:
            return
        path = f"files/{in_path(str(file_id))}"
        try:
            about = self._source.object(path)
            place, most = self._folder.content(str(file_id)), self._wanted.most_file
            self._source.content(f"{path}/content", lambda chunks: self._folder.write(place, chunks, most))
        except (RefusedError, LimitError) as error:
            self._bars.note(f"the file {file_id} cannot be had: {error}")
            self._lost.add(str(file_id))
            return
        self._folder.write_json(described, about)

    def _save_metrics(self, job_id: str, file_id: object) -> None:
        """The result file as people read it: OpenAI sends it as base64."""
        path = self._folder.saved_content(file_id)
        if path is None:
            return
        data = path.read_bytes()
        try:
            plain = base64.b64decode(data, validate=True)
        except binascii.Error:
            plain = data
        self._folder.write(self._folder.job(job_id) / "metrics.csv", [plain if plain.startswith(b"step,") else data])

    # -------------------------------------------------------------------------------------------------- pictures

    def _save_pictures(self, jobs: Sequence[dict[str, Any]]) -> None:
        urls = dict.fromkeys(url for job in jobs for file in self._files(job) for url in self._urls(file))
        for url in self._bars.over("saving pictures", urls, len(urls)):
            known = self._folder.picture(url)
            if known is not None and "file" in known:
                continue
            try:
                data, kind = fetch_picture(url, self._wanted.allow_hosts)
            except NoPictureError as error:
                self._folder.note_no_picture(url, str(error))
            else:
                self._folder.add_picture(url, data, kind)

    def _files(self, job: dict[str, Any]) -> list[str]:
        named = (job.get("training_file"), job.get("validation_file"))
        return [str(one) for one in named if self._folder.saved_content(one) is not None]

    def _urls(self, file_id: str) -> Iterator[str]:
        for row in read_rows(self._folder.content(file_id)):
            yield from filter(is_http, picture_urls(row))

    # --------------------------------------------------------------------------------------------------- answers

    def _ask(self, job: dict[str, Any]) -> None:
        """The old model's answers to the questions of the validation file, or where there was none of the training
        file, which it has seen."""
        model, files = job.get("fine_tuned_model"), self._files(job)
        if not isinstance(model, str) or job.get("status") != "succeeded" or not files:
            return
        path = self._folder.job(job["id"]) / "answers.jsonl"
        asked = {answer["line"] for answer in self._folder.answers(job["id"])}
        for question in questions_of(self._folder, files[-1], self._wanted.questions):
            if question.line in asked:
                continue
            found: dict[str, Any] = {
                "file": files[-1],
                "line": question.line,
                "seen": files[-1] == job.get("training_file"),
            }
            try:
                found["answer"] = self._source.answer(model, question.messages, self._wanted.most_tokens)
            except GoneError as error:
                self._bars.note(f"{model} cannot be asked any more: {error}")
                return
            except RefusedError as error:
                found["error"] = str(error)
            self._folder.append_line(path, found)

    def _count(self, jobs: Sequence[dict[str, Any]]) -> None:
        counts, folder = self.counts, self._folder
        counts.jobs, counts.lost_files = len(jobs), len(self._lost)
        counts.files = sum(1 for _ in (folder.path / "files").glob("*/file.json"))
        notes = [folder.read_json(path) for path in (folder.path / "pictures" / "by_url").glob("*.json")]
        counts.pictures = sum("file" in note for note in notes)
        counts.lost_pictures = len(notes) - counts.pictures
        counts.answers = sum(len(folder.answers(job["id"])) for job in jobs)


def questions_of(folder: SnapshotFolder, file_id: str, most: int) -> Iterator[Question]:
    found = (question_of(row) for row in read_rows(folder.content(file_id)))
    return islice((question for question in found if question is not None), most)
