"""What Prometheus reads before anything has happened: a rate wants a 0 to begin with."""

from typing import get_args

import pytest

from opsin_server.metrics import Metrics
from opsin_server.storage import batch_records, job_records
from opsin_server.webhook_metrics import Outcome


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("opsin_jobs_ended_total", "status", job_records.ENDED),
        ("opsin_batches_ended_total", "status", batch_records.ENDED),
        ("opsin_batch_lines_total", "outcome", ("completed", "failed")),
        ("opsin_webhook_attempts_total", "outcome", get_args(Outcome)),
    ],
)
def test_counters_whose_labels_are_known_begin_at_0(name: str, label: str, values: frozenset[str]) -> None:
    registry = Metrics().registry
    found = {
        sample.labels[label]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }
    assert found == dict.fromkeys(values, 0)
