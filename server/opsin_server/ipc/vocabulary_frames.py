"""The raw frames behind a Vocabulary, from the bytes of tokens and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opsin_server.ipc.messages import Frame


def vocabulary_frames(tokens: Sequence[bytes]) -> list[Frame]:
    return [b"".join(tokens), np.array([len(token) for token in tokens], np.int32).tobytes()]


def tokens_from(frames: Sequence[bytes]) -> list[bytes]:
    """Raises ValueError for frames that do not fit each other."""
    if len(frames) != 2 or len(frames[1]) % 4:
        raise ValueError(f"{len(frames)} frames are no vocabulary")
    lengths = np.frombuffer(frames[1], np.int32)
    if (lengths < 0).any() or int(lengths.sum(dtype=np.int64)) != len(frames[0]):
        raise ValueError(f"{len(frames[0])} bytes are not those of {len(lengths)} tokens")
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [frames[0][start:stop] for start, stop in zip([0, *ends], ends, strict=False)]
