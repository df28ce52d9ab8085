"""The content digest of the model that is served, found meanwhile by a thread that takes little of the CPU."""

from __future__ import annotations

import logging
import threading
import time

from opsin_plugins.loading.content_digest import ContentDigest
from opsin_plugins.spec import SpecError

# The thread rests this many times as long as it worked. (Not a lower priority: it would then hold the interpreter's
# lock in turns that the system gives it late, and requests would wait for it.)
RESTS = 3.0
LEAVE_SECONDS = 1.0  # a chunk takes milliseconds; a disk that hangs keeps no server from ending

log = logging.getLogger("opsin.launch")


class ModelDigest:
    """value: as of `ContentDigest.compute`; None until it is known, and when it cannot be."""

    def __init__(self, content: ContentDigest) -> None:
        self.value: str | None = None
        self._content = content
        self._stopped = threading.Event()
        self._woke = 0.0
        self._thread = threading.Thread(target=self._find, name="opsin-digest", daemon=True)

    def start(self) -> None:
        """Once, when the engine has read the weights: a disk serves one reader faster than two."""
        self._thread.start()

    def stop(self) -> None:
        """Whether or not it was started. What is hashed already is kept for the next start."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(LEAVE_SECONDS)

    def _find(self) -> None:
        self._woke = time.perf_counter()
        try:
            self.value = self._content.compute(self._rest)
        except _Stopped:
            pass
        except (SpecError, OSError) as error:
            log.warning("this model's content digest cannot be told: %s", error)

    def _rest(self) -> None:
        if self._stopped.wait(RESTS * (time.perf_counter() - self._woke)):
            raise _Stopped
        self._woke = time.perf_counter()


class _Stopped(Exception):
    pass
