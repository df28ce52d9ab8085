"""What a server has acknowledged of files and jobs, and whether it is still so."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from support.talk import MINI

OVER = ("succeeded", "failed", "cancelled")


@dataclass
class Ledger:
    """files: SHA-256 by id. jobs: ids by the Idempotency-Key with which they were made. events: of each job the ids in
    order, with what they said."""

    rng: random.Random
    train: bytes
    valid: bytes
    epochs: int
    files: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)  # by key, whether or not it was answered
    events: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    counted: Counter[str] = field(default_factory=Counter)

    def upload(self, client: openai.OpenAI, data: bytes) -> str:
        data += b" " * self.rng.randrange(1000) + b"\n"  # (a line without anything is none)
        file = client.files.create(file=("rows.jsonl", data), purpose="fine-tune")
        self.files[file.id] = hashlib.sha256(data).hexdigest()
        return file.id

    def create(self, client: openai.OpenAI) -> None:
        """Asks again for what was asked for and not answered, else for something new."""
        key = next((key for key in self.asked if key not in self.jobs), None)
        if key is None:
            key = f"key-{len(self.asked)}"
            valid = self.upload(client, self.valid) if self.rng.random() < 0.5 else None
            self.asked[key] = {
                "model": MINI.name,
                "training_file": self.upload(client, self.train),
                "seed": len(self.asked),
                "method": {
                    "type": "supervised",
                    "supervised": {"hyperparameters": {"n_epochs": self.epochs, "batch_size": 4}},
                },
            } | ({} if valid is None else {"validation_file": valid})
        else:
            self.counted["asked again"] += 1
        job = client.fine_tuning.jobs.create(**self.asked[key], extra_headers={"Idempotency-Key": key})
        self.jobs[key] = job.id
        self.events[job.id] = []

    def look(self, client: openai.OpenAI, job_id: str) -> None:
        """Reads a job and its events: those that were there before are, in their places."""
        job = client.fine_tuning.jobs.retrieve(job_id)
        found = [(event.id, event.message) for event in client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]
        seen = self.events[job_id]
        assert found[: len(seen)] == seen, f"events of {job_id} were lost or moved: {seen}\n{found}"
        self.events[job_id] = found
        if job.status in OVER:
            self.over.add(job_id)

    def going(self) -> list[str]:
        return [job_id for job_id in self.jobs.values() if job_id not in self.over]

    def check_files(self, client: openai.OpenAI, ids: list[str]) -> None:
        for file_id in ids:
            assert hashlib.sha256(client.files.content(file_id).read()).hexdigest() == self.files[file_id]

    def check_all(self, client: openai.OpenAI) -> None:
        self.check_files(client, list(self.files))
        made = {job.id for job in client.fine_tuning.jobs.list(limit=100)}
        assert made == set(self.jobs.values()), "a job was lost, or was made twice"
        for key, job_id in self.jobs.items():
            self.look(client, job_id)
            job = client.fine_tuning.jobs.retrieve(job_id)
            assert job.status == "succeeded", job.error
            self._check_events(client, job, "validation_file" in self.asked[key])

    def _check_events(self, client: openai.OpenAI, job: FineTuningJob, validated: bool) -> None:
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))[::-1]
        numbers: list[dict[str, Any]] = [event.data for event in events if event.type == "metrics"]  # type: ignore[misc]
        total = numbers[0]["total_steps"]
        trained = [one["step"] for one in numbers if "train_loss" in one]
        assert trained == list(range(1, total + 1)), f"{job.id}: {trained}"
        evaluated = [one["step"] for one in numbers if "full_valid_loss" in one]
        epoch = total // self.epochs
        assert evaluated == list(range(epoch, total + 1, epoch)) * validated, f"{job.id}: {evaluated}"
        said = [event.message for event in events]
        assert said.count("The job has successfully completed") == 1
        assert said[-1] == "The job has successfully completed"
        kept = [one.step_number for one in client.fine_tuning.jobs.checkpoints.list(job.id)]
        assert kept == [total, total - epoch, total - 2 * epoch], f"{job.id}: {kept}"
        self.counted["steps"] += len(trained)
        self.counted["events"] += len(events)
