"""`opsin migrate create`: the jobs of a snapshot, made again on another server, once --run says so."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import openai

from opsin_client.migrate.folder import SnapshotFolder
from opsin_client.migrate.plan import MIGRATED_FROM, PlannedJob, body_of, lines_with_pictures
from opsin_client.migrate.problems import MigrateError
from opsin_client.migrate.progress import Bars
from opsin_client.table import show_table

IN_PARTS = 256 * 2**20  # bytes from which on a file is uploaded in parts
MOST_NAMED = 8  # models in a message
NUMBERS = ("rows", "validation", "pictures", "not saved")
HEAD = ("job", "method", *NUMBERS, "becomes", "can be made")


def show_plan(jobs: Sequence[PlannedJob], made: Mapping[str, str], known: Set[str]) -> None:
    """made: ids of the jobs that are there already, by those that they were made of. known: the server's models."""
    show_table(HEAD, [_cells(job, made, known) for job in jobs], NUMBERS)


def to_make(jobs: Sequence[PlannedJob], made: Mapping[str, str], known: Set[str]) -> list[PlannedJob]:
    """Those that can be made now: what a job was trained on from must be there."""
    return [job for job in jobs if not job.why_not and job.id not in made and not job.waits(known)]


def made_already(client: openai.OpenAI) -> dict[str, str]:
    """Ids of jobs that go on or have succeeded, by those that they were made of."""
    found: dict[str, str] = {}
    for job in client.fine_tuning.jobs.list(limit=100):
        origin = (job.metadata or {}).get(MIGRATED_FROM)
        if origin is not None and job.status not in ("failed", "cancelled"):
            found.setdefault(origin, job.id)
    return found


def first_model(client: openai.OpenAI) -> str:
    """The server's own, not what was fine-tuned there."""
    for model in client.models.list():
        if not model.id.startswith("ft:"):
            return model.id
    raise MigrateError("the server names no model to train")


def check_model(model: str, known: Set[str]) -> None:
    """Raises MigrateError for what the server does not have; the message names its own models first."""
    if model in known:
        return
    names = sorted(known, key=lambda name: (name.startswith("ft:"), name))
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    raise MigrateError(f"the server has no model {model}; it has {', '.join(names[:MOST_NAMED])}{more}")


class Maker:
    """files: each is uploaded once, however many jobs read it."""

    def __init__(self, client: openai.OpenAI, folder: SnapshotFolder, model: str, bars: Bars) -> None:
        self._client, self._folder, self._model, self._bars = client, folder, model, bars
        self._files: dict[str, str] = {}

    def make(self, planned: PlannedJob, *, same_hyperparameters: bool) -> str:
        """The new job's id."""
        for name, facts in (("training_file", planned.training), ("validation_file", planned.validation)):
            if facts is not None:
                self._upload(str(planned.job[name]))
        body = body_of(planned, self._model, self._files, same_hyperparameters=same_hyperparameters)
        own = body.pop("opsin", None)
        extra: dict[str, Any] = {} if own is None else {"extra_body": {"opsin": own}}
        return self._client.fine_tuning.jobs.create(**body, **extra).id

    def make_alias(self, name: str) -> None:
        """The name of a model of the source means the server's own."""
        self._client.post("/aliases", cast_to=object, body={"alias": name, "target": self._model})

    def _upload(self, file_id: str) -> None:
        if file_id in self._files:
            return
        with tempfile.TemporaryDirectory(dir=self._folder.path, prefix=".upload") as scratch:
            path = Path(scratch) / f"{file_id}.jsonl"
            with path.open("wb") as file:
                for line in self._bars.over(f"preparing {file_id}", lines_with_pictures(self._folder, file_id)):
                    file.write(line)
            self._files[file_id] = self._uploaded(path)

    def _uploaded(self, path: Path) -> str:
        if path.stat().st_size < IN_PARTS:
            with path.open("rb") as file:
                return self._client.files.create(file=(path.name, file), purpose="fine-tune").id
        upload = self._client.uploads.upload_file_chunked(file=path, mime_type="application/jsonl", purpose="fine-tune")
        if upload.file is None:
            raise MigrateError(f"the upload of {path.name} became no file")
        return upload.file.id


def _cells(planned: PlannedJob, made: Mapping[str, str], known: Set[str]) -> list[str]:
    training, validation = planned.training, planned.validation
    both = [facts for facts in (training, validation) if facts is not None]
    becomes = planned.old_name or "a model of its own name"
    lost = sum(facts.lost_pictures for facts in both)
    return [
        planned.id,
        planned.method,
        "-" if training is None else f"{training.rows:,}",
        "-" if validation is None else f"{validation.rows:,}",
        f"{sum(facts.pictures for facts in both):,}",
        f"{lost:,}",
        becomes,
        _verdict(planned, made, known, lost),
    ]


def _verdict(planned: PlannedJob, made: Mapping[str, str], known: Set[str], lost_pictures: int) -> str:
    if planned.id in made:
        return f"is made: {made[planned.id]}"
    if planned.why_not:
        return f"no: {planned.why_not}"
    if planned.waits(known):
        return f"later: it was trained on from {planned.parent}; run this again when that is here"
    if lost_pictures:
        return f"yes, but {lost_pictures:,} pictures are missing: its rows may be refused"
    return "yes"
