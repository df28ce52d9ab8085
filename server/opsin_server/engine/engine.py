"""submit, cancel, step. `step` calls schedule, build, encode, run, draw, in that order; none of them calls another."""

from __future__ import annotations

import logging
import time
from collections import defaultdict

import torch

from opsin_plugins.spec import SpecError
from opsin_server.engine.running.batch import build
from opsin_server.engine.running.runner import Runner
from opsin_server.engine.running.sampler import SampledToken, draw, sampling_inputs
from opsin_server.engine.scheduling.scheduler import Plan, Scheduler
from opsin_server.engine.scheduling.sequence import Sequence
from opsin_server.engine.validation import check_items, check_spans, check_visible_images
from opsin_server.ipc.messages import Arrays, Logprobs, Output, Stats, Submit

log = logging.getLogger("opsin.engine")


class Engine:
    def __init__(self, scheduler: Scheduler, runner: Runner, max_context: int) -> None:
        self.scheduler, self.runner, self.max_context = scheduler, runner, max_context
        self.sequences: dict[str, Sequence] = {}
        self.steps = self.decode_steps = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def busy(self) -> bool:
        return bool(self.sequences)

    def submit(self, message: Submit, arrays: Arrays) -> None:
        """Raises SpecError for a prompt that must not reach the model; nothing of it is kept then."""
        self._check(message, arrays)
        sequence = Sequence.from_submit(message, arrays, self.runner.model.spec.decoder.rope)
        self.sequences[sequence.request_id] = sequence
        self.scheduler.add(sequence)

    def cancel(self, request_id: str) -> None:
        """Unknown ids are ignored: the request may have ended while the message travelled."""
        sequence = self.sequences.pop(request_id, None)
        if sequence is not None:
            self.scheduler.remove(sequence)

    @torch.no_grad()
    def step(self) -> list[Output]:
        """One batch. A failure ends the requests that were in the batch, and no others."""
        started = time.perf_counter()
        plan = self.scheduler.schedule()
        if not plan.chunks:
            return []
        self.steps += 1
        kind = "decode" if all(c.length == 1 for c in plan.chunks) else "prefill"
        self.decode_steps += kind == "decode"
        clock = self._lap(f"{kind}.schedule", started)
        try:
            drawn = self._compute(plan, kind, clock)
        except Exception:  # whatever the model raises must not take the other requests down
            log.exception("a step of %d sequences failed", len(plan.chunks))
            return [self._fail(c.sequence) for c in plan.chunks]
        done = time.perf_counter()
        outputs = self._advance(plan, drawn)
        self._lap(f"{kind}.advance", done)
        return outputs

    def _compute(self, plan: Plan, kind: str, clock: float) -> list[SampledToken]:
        runner = self.runner
        batch = build(plan, self.scheduler.blocks.block_size)
        clock = self._lap(f"{kind}.batch", clock)
        if plan.encode:
            runner.encode(plan.encode)
            clock = self._lap(f"{kind}.encode", clock)
        drawing = [c.sequence for c in batch.sampled]
        rules = sampling_inputs(
            drawing, runner.model.spec.decoder.vocab, runner.device
        )  # (before the model: it may run behind)
        logits = runner.run(batch)
        clock = self._lap(f"{kind}.model", clock)
        drawn = draw(logits, drawing, rules) if drawing else []
        self._lap(f"{kind}.sample", clock)
        return drawn

    def _advance(self, plan: Plan, drawn: list[SampledToken]) -> list[Output]:
        outputs, tokens = [], iter(drawn)
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.computed += chunk.length
            self.scheduler.blocks.publish(sequence, chunk.start)
            for need in sequence.encoder_inputs:
                if need.stop is not None and need.stop <= sequence.computed:
                    self.scheduler.encoder.unpin(sequence.items[need.item].digest, sequence.request_id)
            if chunk.samples:
                outputs.append(self._append(sequence, next(tokens)))
        return outputs

    def _append(self, sequence: Sequence, drawn: SampledToken) -> Output:
        sequence.tokens.append(drawn.token)
        first = sequence.generated == 1
        finish = None
        if drawn.token in sequence.eos:
            finish = "stop"
        elif sequence.generated >= sequence.max_tokens or len(sequence.tokens) >= self.max_context:
            finish = "length"
        if finish:
            self.cancel(sequence.request_id)
        kept = finish != "stop"
        logprobs: tuple[Logprobs, ...] = (drawn.logprobs,) if drawn.logprobs and kept else ()
        return Output(
            sequence.request_id,
            (drawn.token,) if kept else (),
            logprobs,
            finish,
            cached_tokens=sequence.cached_tokens if first else 0,
            queue_seconds=(sequence.queue_seconds or 0.0) if first else 0.0,
        )

    def _fail(self, sequence: Sequence) -> Output:
        self.cancel(sequence.request_id)
        self.scheduler.encoder.drop_unfilled()
        return Output(sequence.request_id, finish="error", error="the engine could not compute this request")

    def _check(self, message: Submit, arrays: Arrays) -> None:
        total, decoder = len(arrays.ids), self.runner.model.spec.decoder
        if message.request_id in self.sequences:
            raise SpecError(f"request {message.request_id} is already here")
        if not 0 < total < self.max_context:
            raise SpecError(f"{total} prompt tokens; this engine takes 1 to {self.max_context - 1}")
        if arrays.ids.min() < 0 or arrays.ids.max() >= decoder.embeddings:
            raise SpecError(f"a token id is not below the number of embeddings, {decoder.embeddings}")
        if message.axes != max(1, len(decoder.rope.sections)):
            raise SpecError(f"{message.axes} position axes; the model has {max(1, len(decoder.rope.sections))}")
        if message.adapter is not None or message.guided is not None:
            raise SpecError("adapters and guided decoding are not served by this version")
        check_items(message, arrays, self.runner.model)
        check_spans(message, total)
        if self.runner.model.spec.cross is not None:
            check_visible_images(message, total, self.scheduler.encoder)
        elif message.visible:
            raise SpecError("this model has no cross-attention")

    def _lap(self, name: str, since: float) -> float:
        now = time.perf_counter()
        self._seconds[name] += now - since
        return now

    def stats(self) -> Stats:
        scheduler, blocks, encoder = self.scheduler, self.scheduler.blocks, self.scheduler.encoder
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks_used=blocks.used,
            blocks_cached=blocks.cached,
            blocks_free=blocks.free,
            steps=self.steps,
            decode_steps=self.decode_steps,
            preemptions=scheduler.preemptions,
            prefix_queries=blocks.queries,
            prefix_hits=blocks.hits,
            encoder_queries=encoder.queries,
            encoder_hits=encoder.hits,
            encoder_bytes=self.runner.encoder_bytes(),
            seconds=dict(self._seconds),
        )
