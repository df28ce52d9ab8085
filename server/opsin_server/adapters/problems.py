"""Why an adapter is not served: every reason that was found, not only the first."""

from __future__ import annotations

SHOWN = 12  # reasons in a message; the count is always given


class BadAdapter(ValueError):
    """The message is for whoever gave the adapter."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        super().__init__("; ".join(problems[:SHOWN]) + more)
