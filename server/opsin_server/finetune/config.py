"""What `opsin finetune` is told beside the model and the files."""

from __future__ import annotations

import msgspec

from opsin_server.jobs.options import DataOptions
from opsin_server.jobs.training_options import TrainingOptions
from opsin_server.jobs.what_trains import WhatTrains
from opsin_server.media_limits import MediaLimits


class FinetuneConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    what: WhatTrains = WhatTrains()
    training: TrainingOptions = TrainingOptions()
    data: DataOptions = DataOptions(min_rows=1)
    media: MediaLimits = MediaLimits()
