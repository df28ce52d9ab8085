"""How much of the background a step may have beside others, by what steps were measured to take. No torch: seconds come
from whoever runs it.

A step without anybody else is the background's whole. Beside others it has as many tokens as make the step longer by a
part that a reader does not see: on a CPU, where every token costs, one or a part of one, on a GPU most of what it has.
Where already the first token of a prompt costs more than that (a step that only decodes is run by other means than one
that does not), what the background does not have is saved up, and one step in many is longer all the same: so seldom
that it is less than one in a hundred of the pauses between others' tokens. So it is for pictures; and one that takes
longer than that is encoded after a while whatever it takes.
"""

from __future__ import annotations

from collections.abc import Callable

from opsin_server.engine.scheduling.encode_pace import ENCODE_SECONDS, EncodePace
from opsin_server.engine.scheduling.plan import Plan, Room
from opsin_server.engine.scheduling.step_times import StepTimes

STRETCH = 0.15  # of a step's time
LEAST = 0.1  # tokens a step, so that it ends
EVERY = 150  # steps beside others, of which one may be longer
PICTURE_SECONDS = 2.0  # between two pictures that take longer than that


class BackgroundPace:
    def __init__(self, encode: EncodePace, clock: Callable[[], float]) -> None:
        self._encode, self._clock, self._next_picture = encode, clock, 0.0
        self._decodes, self._others = StepTimes(), StepTimes()  # of steps that only decode, and of all others
        self._owed = 0.0  # parts of a token
        self._saved, self._steps = 0.0, 0  # seconds and steps since one was longer

    def observe(self, tokens: int, seconds: float, decodes: bool) -> None:
        """Of a step that encoded nothing."""
        (self._decodes if decodes else self._others).observe(tokens, seconds)

    def room(self, plan: Plan) -> Room:
        """Beside what is planned of others, in one step; parts of a token add up over steps."""
        tokens, prompts = plan.tokens, plan.prompt_tokens
        times = self._others if prompts else self._decodes
        seconds = times.seconds(tokens)
        self._owed += max(LEAST, times.fits(tokens, seconds, (1 + STRETCH) * seconds))
        more = int(self._owed)
        self._owed -= more
        self._saved, self._steps = min(self._saved + STRETCH * seconds, max(ENCODE_SECONDS, seconds)), self._steps + 1
        half = self._saved / 2 if self.may_be_longer else 0.0  # (for tokens, and for pictures)
        patches = plan.patches + self._encode.within(max(STRETCH * seconds, half))
        images = len(plan.encode) + (self._clock() >= self._next_picture)
        first = self._others.seconds(tokens + 1)
        if prompts or first <= (1 + 2 * STRETCH) * seconds:
            return Room(more, tokens - prompts + more, prompts + more, patches, images)
        behind = max(1, int(self._others.fits(tokens, first, seconds + half))) if self.may_be_longer else 0
        return Room(more + behind, tokens + more, behind, patches, images)

    @property
    def may_be_longer(self) -> bool:
        return self._steps >= EVERY

    def took(self, tokens: int, pictures: int) -> None:
        """Of prompts, and pictures to encode, in the step for which there was room last."""
        if pictures:
            self._next_picture = self._clock() + PICTURE_SECONDS
        if self.may_be_longer and (tokens or pictures):
            self._saved, self._steps = 0.0, 0
