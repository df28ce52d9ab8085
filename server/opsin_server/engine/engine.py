"""submit, cancel, step. `step` calls schedule, build, encode, run, draw and commit, in that order; none of them calls
another."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import torch

from opsin_server.engine.arrivals import Arrivals, without_grammar
from opsin_server.engine.running.adapter_loader import AdapterLoader
from opsin_server.engine.running.batch import build
from opsin_server.engine.running.grammars import GrammarCompiler
from opsin_server.engine.running.masks import masks_of
from opsin_server.engine.running.pooling import PooledStates, with_embeddings
from opsin_server.engine.running.prompt_logprobs import ScoredPrompts
from opsin_server.engine.running.runner import Runner
from opsin_server.engine.running.sampler import DrawnTokens, SampledToken, draw, needs_tokens, sampling_inputs
from opsin_server.engine.running.stopwatch import Stopwatch
from opsin_server.engine.scheduling.plan import Committed, Encoding, Plan
from opsin_server.engine.scheduling.scheduler import Scheduler
from opsin_server.engine.scheduling.sequence import Sequence
from opsin_server.engine.validation import check_submit
from opsin_server.ipc.engine_socket import HasFileno
from opsin_server.ipc.messages import (
    BACKGROUND,
    AdapterLoad,
    AdapterRef,
    AdapterReport,
    Arrays,
    Output,
    Stats,
    Submit,
    choice_ids,
)

log = logging.getLogger("opsin.engine")

MAX_FAILURES = 3  # steps in a row: one request that fails by itself is not the engine's fault


class EngineBroken(RuntimeError):
    """Nothing more can be computed by this process; another one must take its place."""


def _ahead(sequences: Iterable[Sequence]) -> int:
    """How many are not the background's: what gives way keeps nobody from being sent here."""
    return sum(sequence.priority < BACKGROUND for sequence in sequences)


@dataclass(frozen=True)
class LaunchedStep:
    """A step whose results are not known yet. started: when it was scheduled. encoding: how long its images take, if it
    has any. drawn None: no chunk samples. pooled None: no prompt ends whose states are pooled. scored None: nobody asks
    how likely a prompt is."""

    plan: Plan
    started: float
    kind: Literal["decode", "prefill"]
    encoding: Stopwatch | None
    drawn: DrawnTokens | None
    pooled: PooledStates | None = None
    scored: ScoredPrompts | None = None


def _no_numbers(sequence: Sequence) -> str:
    what = "logits for this request are" if sequence.pooling is None else "embedding for this request is"
    return f"the model's {what} no numbers"


def _error_of(work: Callable[[Seq[Encoding]], None], images: Seq[Encoding]) -> Exception | None:
    """The error, logged, or None. It keeps no frame, and so none of the memory that the work had taken."""
    try:
        work(images)
    except Exception as error:
        log.exception("encoding %d images failed", len(images))
        return error.with_traceback(None)
    return None


class Engine:
    """run_ahead: whether a step is scheduled and launched while the one before still runs, so that the device does not
    wait for the host. A batch of which the host needs the tokens (penalties, log probabilities) is always waited for.
    loader: reads adapters, where there are slots for any.
    """

    def __init__(
        self, scheduler: Scheduler, runner: Runner, run_ahead: bool = False, loader: AdapterLoader | None = None
    ) -> None:
        self.scheduler, self.runner, self.run_ahead, self.loader = scheduler, runner, run_ahead, loader
        self.steps = self.decode_steps = self.steps_ahead = 0
        self.grammars = GrammarCompiler(runner.model.spec.decoder.vocab)
        self.arrivals = Arrivals(self.grammars, self._schedule)
        self.sequences = self.arrivals.sequences
        self._launched: LaunchedStep | None = None
        self._only_loads = False  # nothing can be computed before an adapter is loaded
        self._committed = 0.0  # when the last step was
        self._failures = 0  # steps in a row
        self._loads: list[AdapterLoad] = []  # since the last report
        self._reported: tuple[tuple[bytes, ...], tuple[bytes, ...]] = ((), ())
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def busy(self) -> bool:
        """Whether a step may do something now. When all that is left waits for adapters, whoever drives the engine can
        wait as well, for messages and for `loader`. What it has read must be taken in any case, whoever wanted it."""
        if self._launched is not None or self.grammars.has_results:
            return True
        if self.loader is not None and self.loader.has_results:
            return True
        return self.arrivals.may_be_computed and not self._only_loads

    @property
    def wakers(self) -> list[HasFileno]:
        """What can be read while there is something beside messages that a step should take."""
        return [waker for waker in (self.grammars.waits_for, self.loader) if waker is not None]

    def close(self) -> None:
        """Ends what runs beside the steps."""
        self.grammars.close()
        if self.loader is not None:
            self.loader.close()

    def submit(self, message: Submit, arrays: Arrays) -> None:
        """Raises SpecError for a prompt that must not reach the model; nothing of it is kept then."""
        check_submit(
            message,
            arrays,
            self.runner.model,
            self.scheduler,
            here=self.sequences,
            knows_tokens=self.grammars.knows_tokens,
            has_slots=self.loader is not None,
        )
        rope, ids = self.runner.model.spec.decoder.rope, choice_ids(message.request_id, message.choices)
        made = [Sequence.from_submit(message, arrays, rope, name, number) for number, name in enumerate(ids)]
        self.arrivals.add(made)

    def _schedule(self, sequence: Sequence) -> None:
        self.scheduler.add(sequence)
        self._only_loads = False

    def cancel(self, request_id: str) -> None:
        """Unknown ids are ignored: the request may have ended while the message travelled."""
        sequence = self.arrivals.forget(request_id)
        if sequence is not None:
            self.scheduler.remove(sequence)
            self._only_loads = False  # (others may go on with what it held)

    @torch.no_grad()
    def step(self) -> list[Output]:
        """Launches a step, and returns what it drew; when running ahead, what the step before it drew.

        A failure ends the requests that were in the batch, and no others. Raises EngineBroken when step after step
        fails, or the device does not answer any more."""
        outputs = self.arrivals.take_compiled() + self._take_adapters()  # (who has a grammar now may want an adapter)
        if self._launched is not None and not self.scheduler.can_run_ahead():
            outputs += self._commit_launched()
        started = time.perf_counter()
        plan = self.scheduler.schedule()
        launched, failed = self._launch(plan, started)
        outputs += self._commit_launched()
        self._launched = launched
        if not self.run_ahead or needs_tokens(plan.chunks):
            outputs += self._commit_launched()
        outputs += failed
        # Nothing was there to be done, and nothing has ended that made room for others.
        self._only_loads = plan.empty and not outputs and self.scheduler.adapters.loading
        return outputs

    def _take_adapters(self) -> list[Output]:
        """Adapters that have been read since the last step, and those that must be read next."""
        if self.loader is None:
            return []
        outputs = []
        adapters = self.scheduler.adapters
        for result in self.loader.results():
            self._loads.append(AdapterLoad(result.ref.digest, result.seconds, result.error))
            if result.adapter is not None:
                adapters.fill(result.ref.digest, result.adapter)
                continue
            message = f"the adapter cannot be loaded: {result.error}"
            log.warning("%s", message)
            for sequence in self.scheduler.fail_adapter(result.ref):
                self.arrivals.forget(sequence.request_id)
                outputs.append(Output(sequence.request_id, finish="error", error=message))
        for ref in adapters.take_wanted():
            self.loader.request(ref)
        return outputs

    def keep_adapters(self, refs: tuple[AdapterRef, ...]) -> None:
        """They are read at once and stay in their slots, instead of those that were kept before. More than there is
        room for are not."""
        if self.loader is None:
            return
        adapters = self.scheduler.adapters
        adapters.keep(refs[: adapters.slots - 1])
        for ref in adapters.take_wanted():
            self.loader.request(ref)

    def adapter_report(self) -> AdapterReport | None:
        """None: as it was when it was last asked for."""
        adapters = self.scheduler.adapters
        now = adapters.in_slots, adapters.on_host
        if now == self._reported and not self._loads:
            return None
        loads, self._loads, self._reported = tuple(self._loads), [], now
        return AdapterReport(*now, loads)

    def _place(self, plan: Plan) -> None:
        """Adapters into their slots. When that fails, nothing in them can be relied on."""
        try:
            for slot, loaded in plan.place.values():
                self.runner.place(slot, loaded.weights)
        except Exception:
            for digest in plan.place:
                self.scheduler.adapters.drop(digest)
            raise

    def _launch(self, plan: Plan, started: float) -> tuple[LaunchedStep | None, list[Output]]:
        if plan.empty:
            return None, []
        self.steps += 1
        self.steps_ahead += self._launched is not None
        decodes = bool(plan.chunks) and all(chunk.length == 1 for chunk in plan.chunks)
        kind: Literal["decode", "prefill"] = "decode" if decodes else "prefill"
        self.decode_steps += kind == "decode"
        clock = self._lap(f"{kind}.schedule", started)
        failed: list[Output] = []
        encoding: Stopwatch | None = None
        try:
            self._place(plan)
            if plan.encode:
                encoding = Stopwatch(self.runner.device)
                failed = self._encode(plan)
                encoding.mark()
                clock = self._lap(f"{kind}.encode", clock)
            computed = self._compute(plan, kind, clock) if plan.chunks else (None, None, None)
            return LaunchedStep(plan, started, kind, encoding, *computed), failed
        except Exception as error:  # whatever the model raises must not take the other requests down
            return None, failed + self._fail(plan, error)

    def _encode(self, plan: Plan) -> list[Output]:
        """All images in one pass; where that fails, each alone, and those that fail then end the requests that need
        them. (Together they may have been too large for the memory, or one of them a stranger's.)"""
        if _error_of(self.runner.encode, plan.encode) is None:
            return []
        broken: dict[bytes, Exception] = {}
        for encoding in plan.encode:
            error = _error_of(self.runner.encode, [encoding])
            if error is not None:
                broken[encoding.key] = error
        if not broken:
            return []
        return self._ended(self.scheduler.fail_images(plan, broken.keys()), next(iter(broken.values())))

    def _compute(
        self, plan: Plan, kind: str, clock: float
    ) -> tuple[DrawnTokens | None, PooledStates | None, ScoredPrompts | None]:
        runner = self.runner
        batch = build(plan, self.scheduler.blocks.block_size)
        clock = self._lap(f"{kind}.batch", clock)
        rules = sampling_inputs(
            batch.sampled, runner.model.spec.decoder.vocab, runner.device
        )  # (before the model: it may run behind)
        logits = runner.run(batch)
        clock = self._lap(f"{kind}.model", clock)
        of_prompts = (None, None) if batch.asked is None else (runner.pooled, runner.scored)
        if not batch.sampled:
            return None, *of_prompts
        masks = masks_of(batch.sampled, self.grammars.words)  # (while a GPU computes)
        if masks is not None:
            clock = self._lap(f"{kind}.grammar", clock)
        drawn = draw(logits, batch.sampled, rules, masks)
        drawn.refused = {} if masks is None else masks.refused
        runner.drawn = drawn.ids
        self._lap(f"{kind}.sample", clock)
        return drawn, *of_prompts

    def _commit_launched(self) -> list[Output]:
        step, self._launched = self._launched, None
        if step is None:
            return []
        clock = time.perf_counter()
        try:
            drawn = [] if step.drawn is None else step.drawn.read()
            embeddings = {} if step.pooled is None else step.pooled.read()
            prompts = [] if step.scored is None else step.scored.read()
            if step.encoding is not None:
                self.scheduler.images.pace.observe(step.plan.patches, step.encoding.seconds())
        except Exception as error:
            return self._fail(step.plan, error)
        clock = self._lap(f"{step.kind}.sample", clock)
        if step.encoding is None:
            tokens, decodes = step.plan.tokens, step.plan.prompt_tokens == 0
            self.scheduler.background.observe(tokens, clock - max(step.started, self._committed), decodes)
        self._committed, self._failures = clock, 0
        if embeddings:
            drawn = with_embeddings(drawn, step.plan.chunks, embeddings)
        outputs = [Output(name, prompt=(part,)) for name, part in prompts if name in self.sequences]
        committed = self.scheduler.commit(step.plan, [sampled.token for sampled in drawn])
        outputs += [self._output(one, drawn[one.row], embeddings) for one in committed]
        self._lap(f"{step.kind}.advance", clock)
        return outputs

    def _output(self, committed: Committed, drawn: SampledToken, embeddings: Mapping[str, bytes | None]) -> Output:
        sequence, token, finish = committed.sequence, committed.token, committed.finish
        if finish:
            self.arrivals.forget(sequence.request_id)
        else:
            self.arrivals.release(sequence.request_id)
        if finish == "error":
            if why := committed.why or drawn.refused:
                return without_grammar(sequence.request_id, why)
            return Output(sequence.request_id, finish=finish, error=_no_numbers(sequence))
        first, stopped = sequence.generated == 1, finish == "stop"
        if finish == "complete":
            finish = "stop"
        if finish is not None and not sequence.answers:
            finish = "length"
        return Output(
            sequence.request_id,
            (token,) if sequence.answers and not stopped else (),
            (drawn.logprobs,) if drawn.logprobs and sequence.answers else (),
            finish,
            cached_tokens=sequence.cached_tokens if first else 0,
            queue_seconds=(sequence.queue_seconds or 0.0) if first else 0.0,
            adapter_tier=sequence.adapter_tier if first else "",
            embedding=embeddings.get(sequence.request_id) or b"",
            end=token if stopped and sequence.answers else None,
        )

    def _fail(self, plan: Plan, error: Exception) -> list[Output]:
        log.error("a step of %d sequences failed", len(plan.chunks), exc_info=error)
        return self._ended(self.scheduler.fail(plan), error)

    def _ended(self, failed: list[Sequence], error: Exception) -> list[Output]:
        """What requests hear that have been failed. Raises EngineBroken."""
        self._failures += 1
        for sequence in failed:
            self.arrivals.forget(sequence.request_id)
        if self._failures >= MAX_FAILURES or isinstance(error, torch.AcceleratorError):
            raise EngineBroken(f"{self._failures} steps in a row failed: {type(error).__name__}") from error
        message = "the engine could not compute this request"
        return [Output(sequence.request_id, finish="error", error=message) for sequence in failed]

    def _lap(self, name: str, since: float) -> float:
        now = time.perf_counter()
        self._seconds[name] += now - since
        return now

    def stats(self) -> Stats:
        scheduler, blocks, encoder = self.scheduler, self.scheduler.blocks, self.scheduler.encoder
        return Stats(
            running=_ahead(scheduler.running),
            waiting=_ahead(scheduler.waiting) + self.arrivals.unscheduled,
            blocks_used=blocks.used,
            blocks_cached=blocks.cached,
            blocks_free=blocks.free,
            steps=self.steps,
            decode_steps=self.decode_steps,
            steps_ahead=self.steps_ahead,
            preemptions=scheduler.preemptions,
            prefix_queries=blocks.queries,
            prefix_hits=blocks.hits,
            encoder_queries=encoder.queries,
            encoder_hits=encoder.hits,
            encoder_bytes=self.runner.encoder_bytes(),
            seconds=dict(self._seconds),
        )
