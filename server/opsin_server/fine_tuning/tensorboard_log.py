"""Numbers of a job as event files that TensorBoard reads, beside the events that everybody gets."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from opsin_server.errors import BadRequest
from opsin_server.storage.records import NewEvent

FOLDER = "tensorboard"  # in the data directory, with a folder for each job
SHOWN = (
    "train_loss", "train_mean_token_accuracy", "learning_rate", "gradient_norm", "full_valid_loss",
    "full_valid_mean_token_accuracy", "trained_tokens",
)  # fmt: skip


def check_installed() -> None:
    """Raises BadRequest."""
    if find_spec("tensorboardX") is None:
        raise BadRequest(
            "the integration 'tensorboard' needs a package that this server has not: pip install 'opsin[tensorboard]'",
            param="integrations",
        )


class TensorBoardLog:
    """folder: of the job's event files. One that goes on after a start of the server adds a file, as TensorBoard
    expects."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, events: Iterable[NewEvent]) -> None:
        for event in events:
            data = event.data if event.metrics and event.data is not None else {}
            for name in SHOWN:
                if data.get(name) is not None:
                    self._writer.add_scalar(name, data[name], data["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
