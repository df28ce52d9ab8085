"""What a request's own rules do to single tokens, from what it said and wrote so far."""

from __future__ import annotations

from collections import Counter

from opsin_kernels.penalties import LogitAdjustments
from opsin_server.engine.scheduling.sequence import Sequence


def adjustments_of(sequences: list[Sequence], vocabulary: int) -> LogitAdjustments:
    """For the logits of one row a sequence. Made anew from the tokens at every step: nothing has to follow a
    preemption, and only requests that ask for it pay (about 50 µs for a thousand tokens).

    As the OpenAI API defines them: frequency counts a token in the answer so far, presence asks whether it is there.
    The repetition penalty also looks at the prompt, as in transformers.
    """
    places = LogitAdjustments()
    for row, sequence in enumerate(sequences):
        rules = sequence.sampling
        if not rules.penalizes:
            continue
        bias = dict(rules.logit_bias)
        counts: Counter[int] = Counter()
        if rules.frequency_penalty or rules.presence_penalty:
            counts.update(sequence.tokens[sequence.prompt_length :])
        seen = set(sequence.tokens) if rules.repetition_penalty != 1 else set()
        for token in bias.keys() | counts.keys() | seen:
            if token < vocabulary:  # (image placeholders may lie past what can be drawn)
                count = counts[token]
                shift = count * rules.frequency_penalty + (count > 0) * rules.presence_penalty - bias.get(token, 0.0)
                places.rows.append(row)
                places.tokens.append(token)
                places.factors.append(rules.repetition_penalty if token in seen else 1.0)
                places.shifts.append(shift)
    return places
