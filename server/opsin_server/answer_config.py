"""What a server is told of answers that it keeps."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from opsin_server.option import Option

Count = Annotated[int, Meta(ge=1)]


class AnswerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    store: Annotated[bool, Option("Keep the answers, and their messages, of requests that ask for it.")] = False
    store_days: Annotated[Annotated[int, Meta(ge=1, le=36_500)], Option("For which a kept answer lasts.")] = 30
    store_max: Annotated[Count, Option("Answers that are kept; of more the oldest leave.")] = 10_000
