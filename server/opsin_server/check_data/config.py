"""What `opsin check-data` is told beside the model."""

from __future__ import annotations

import msgspec

from opsin_server.jobs.options import DataOptions
from opsin_server.media_limits import MediaLimits


class CheckConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data: DataOptions = DataOptions()
    media: MediaLimits = MediaLimits()
