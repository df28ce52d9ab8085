"""What of a snapshot can be made again on a server, and as what."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from opsin_client.migrate.folder import SnapshotFolder
from opsin_client.migrate.problems import MigrateError
from opsin_client.migrate.rows import is_http, picture_urls, read_rows, replaced

MIGRATED_FROM = "migrated_from"  # the metadata by which a job is known to have been made already
PAIRS = 16  # of metadata


@dataclass(frozen=True)
class FileFacts:
    rows: int
    bad_rows: int
    tool_rows: int
    pictures: int
    lost_pictures: int


@dataclass(frozen=True)
class PlannedJob:
    """why_not: what keeps it from being made here; empty where nothing does. old_name: of the model that it made."""

    job: Mapping[str, Any]
    training: FileFacts | None
    validation: FileFacts | None
    why_not: str

    @property
    def id(self) -> str:
        return str(self.job["id"])

    @property
    def old_name(self) -> str | None:
        name = self.job.get("fine_tuned_model")
        return name if isinstance(name, str) and name else None

    @property
    def parent(self) -> str | None:
        """The fine-tuned model that it was trained on from."""
        name = self.job.get("model")
        return name if isinstance(name, str) and name.startswith("ft:") else None

    def waits(self, known: Set[str]) -> bool:
        """known: models of the server."""
        return self.parent is not None and self.parent not in known

    @property
    def method(self) -> str:
        method = self.job.get("method")
        kind = method.get("type") if isinstance(method, dict) else None
        return kind if isinstance(kind, str) else "supervised"


def plan(folder: SnapshotFolder, chosen: tuple[str, ...] = ()) -> list[PlannedJob]:
    """chosen: ids of jobs; none: all that have succeeded."""
    jobs = folder.jobs()
    if unknown := set(chosen) - {str(job.get("id")) for job in jobs}:
        raise MigrateError(f"the snapshot has no job {min(unknown)}")
    wanted = [job for job in jobs if (job["id"] in chosen if chosen else job.get("status") == "succeeded")]
    return [_planned(folder, job) for job in wanted]


def base_names(jobs: Sequence[PlannedJob]) -> set[str]:
    """Of the models that were trained from, as the source calls them; what was fine-tuned itself is none of them."""
    return {str(job.job.get("model")) for job in jobs if job.parent is None and not job.why_not}


def _planned(folder: SnapshotFolder, job: dict[str, Any]) -> PlannedJob:
    training = facts_of(folder, job.get("training_file"))
    validation = facts_of(folder, job.get("validation_file"))
    found = PlannedJob(job, training, validation, "")
    why = ""
    if training is None:
        why = "its training file could not be saved"
    elif found.method not in ("supervised", "dpo"):
        why = f"{found.method} fine-tuning is not there"
    elif training.tool_rows:
        why = f"{training.tool_rows:,} rows have tools, which are not trained"
    elif training.bad_rows:
        why = f"{training.bad_rows:,} lines are no JSON objects"
    return PlannedJob(job, training, validation, why)


def facts_of(folder: SnapshotFolder, file_id: object) -> FileFacts | None:
    """None for a file that is not there."""
    path = folder.saved_content(file_id)
    if path is None:
        return None
    rows = bad = tools = pictures = lost = 0
    for row in read_rows(path):
        rows += 1
        bad += row.value is None
        tools += row.uses_tools
        urls = picture_urls(row)
        pictures += len(urls)
        lost += sum(1 for url in urls if is_http(url) and "file" not in (folder.picture(url) or {}))
    return FileFacts(rows, bad, tools, pictures, lost)


def lines_with_pictures(folder: SnapshotFolder, file_id: str) -> Iterator[bytes]:
    """A training file's, with the pictures that were saved in place of their URLs. One that could not be had keeps
    its URL: the server says what becomes of it."""
    for row in read_rows(folder.content(file_id)):
        assert row.value is not None  # (a plan with such rows is not carried out)
        yield json.dumps(replaced(row.value, lambda url: as_data_url(folder, url))).encode() + b"\n"


def as_data_url(folder: SnapshotFolder, url: str) -> str:
    note = folder.picture(url) if is_http(url) else None
    path = None if note is None or "file" not in note else folder.picture_path(str(note["file"]))
    if path is None or not path.is_file():
        return url
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def body_of(planned: PlannedJob, model: str, files: Mapping[str, str], *, same_hyperparameters: bool) -> dict[str, Any]:
    """What is asked of the new server. model: for what was not trained on from another. files: ids there by those of
    the source. Numbers that were chosen for another model say little of this one: without `same_hyperparameters` they
    are "auto"."""
    job, method = planned.job, planned.method
    metadata = dict(list(_pairs(job.get("metadata")))[: PAIRS - 1]) | {MIGRATED_FROM: planned.id}
    given = _hyperparameters(job, method) if same_hyperparameters else {}
    body: dict[str, Any] = {
        "model": planned.parent or model,
        "training_file": files[str(job["training_file"])],
        "metadata": metadata,
        "method": {"type": method, method: {"hyperparameters": given}},
    }
    if planned.validation is not None:
        body["validation_file"] = files[str(job["validation_file"])]
    if isinstance(suffix := job.get("user_provided_suffix"), str) and suffix:
        body["suffix"] = suffix[:64]
    if isinstance(seed := job.get("seed"), int) and 0 <= seed < 2**31:
        body["seed"] = seed
    if planned.old_name is not None:
        body["opsin"] = {"publish_as": planned.old_name}
    return body


def _pairs(metadata: object) -> Iterator[tuple[str, str]]:
    for name, value in metadata.items() if isinstance(metadata, dict) else ():
        if isinstance(value, str) and len(name) <= 64 and len(value) <= 512:
            yield name, value


def _hyperparameters(job: Mapping[str, Any], method: str) -> dict[str, Any]:
    said = job.get("method")
    own = said.get(method) if isinstance(said, dict) else None
    given = own.get("hyperparameters") if isinstance(own, dict) else None
    given = given if isinstance(given, dict) else job.get("hyperparameters")
    names = ("n_epochs", "batch_size", "learning_rate_multiplier", *(("beta",) if method == "dpo" else ()))
    return {name: given[name] for name in names if isinstance(given, dict) and given.get(name) is not None}
