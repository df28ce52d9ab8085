"""What training launches is compiled before the first request is taken, as `warmup` does for serving: a run that begins
must not keep those waiting who chat."""

from __future__ import annotations

import logging
import time

from opsin_server.engine.startup.inspect_checkpoint import InspectedCheckpoint, largest_image
from opsin_server.engine.startup.made_up_row import made_up_row, to_the_end
from opsin_server.engine.training import micro_step
from opsin_server.engine.training.kept_bytes import KeptBytes
from opsin_server.engine.training.micro_batch import collate
from opsin_server.engine.training.modules import trained_modules
from opsin_server.engine.training.objectives import Supervised
from opsin_server.engine.training.trained_model import TrainedModel
from opsin_server.engine.training.trainee import Trainee
from opsin_server.ipc.training_settings import TrainingSettings

log = logging.getLogger("opsin.engine")
RANK, IMAGE = 8, 16  # of an adapter of all linears; visual tokens of the picture, at most, where it can be resized


def warm_training(base: TrainedModel, inspected: InspectedCheckpoint) -> None:
    """Trains an adapter of all linears by one row, and forgets it."""
    from opsin_kernels.gpu.forms import compiling_every_form

    started, spec = time.monotonic(), inspected.spec
    row, visual = made_up_row(inspected, largest_image(inspected.architecture, spec, IMAGE))
    modules = trained_modules(tuple(base.targets.modules(inspected.files.tensors)), base.targets)
    trainee = Trainee(modules, base.linears, TrainingSettings(modules=(), rank=RANK), base.device)
    batch = collate([row], spec, base.device)
    with compiling_every_form():
        to_the_end(micro_step.train(base.model, batch, visual, trainee.lora(None), KeptBytes(0), Supervised(1)))
    log.info("what training launches is compiled, %.1f s", time.monotonic() - started)
