"""The requests that an engine has: those that are scheduled, and those that wait to be, for their grammars or for the
first of several answers to their prompt."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from opsin_server.engine.running.grammars import GrammarCompiler
from opsin_server.engine.scheduling.sequence import Sequence
from opsin_server.ipc.messages import Output

NO_GRAMMAR = "the answer cannot be held to its grammar: {}"


def without_grammar(request_id: str, why: str) -> Output:
    return Output(request_id, finish="error", error=NO_GRAMMAR.format(why), code="invalid_grammar")


class Arrivals:
    """schedule: takes one that waits for nothing any more."""

    def __init__(self, grammars: GrammarCompiler, schedule: Callable[[Sequence], None]) -> None:
        self.grammars, self._schedule = grammars, schedule
        self.sequences: dict[str, Sequence] = {}
        self._unscheduled: set[str] = set()
        self._held: dict[str, Seq[Sequence]] = {}  # further choices, by the first one's id

    @property
    def unscheduled(self) -> int:
        return len(self._unscheduled)

    @property
    def may_be_computed(self) -> bool:
        return len(self.sequences) > len(self._unscheduled)

    def add(self, choices: Seq[Sequence]) -> None:
        """The answers to one prompt."""
        first, *others = choices
        self.sequences |= {sequence.request_id: sequence for sequence in choices}
        if others:
            self._held[first.request_id] = others
            self._unscheduled |= {sequence.request_id for sequence in others}
        self._begin(first)

    def release(self, request_id: str) -> None:
        """Further answers to a prompt begin when its keys and values are there to be shared, or will never be."""
        for sequence in self._held.pop(request_id, ()):
            if sequence.request_id in self.sequences:
                self._begin(sequence)

    def forget(self, request_id: str) -> Sequence | None:
        """One that has ended. None: it is not known, or was not scheduled yet."""
        sequence = self.sequences.pop(request_id, None)
        self.release(request_id)
        if request_id in self._unscheduled:
            self._unscheduled.remove(request_id)
            return None
        return sequence

    def take_compiled(self) -> list[Output]:
        """Those whose grammars have been compiled since the last call wait from here on as others do. What the others
        hear."""
        outputs = []
        for result in self.grammars.results():
            sequence = self.sequences.get(result.request_id)
            if sequence is None:  # cancelled meanwhile
                continue
            if result.guide is not None:
                sequence.guide = result.guide
                self._hand_over(sequence)
            else:
                self.forget(result.request_id)
                outputs.append(without_grammar(result.request_id, result.error))
        return outputs

    def _begin(self, sequence: Sequence) -> None:
        if sequence.grammar is None:
            self._hand_over(sequence)
        else:
            self._unscheduled.add(sequence.request_id)
            self.grammars.request(sequence.request_id, sequence.grammar)

    def _hand_over(self, sequence: Sequence) -> None:
        self._unscheduled.discard(sequence.request_id)
        self._schedule(sequence)
