"""Whole steps of the engine on a GPU: one picture's prefill, and decode at several batch sizes.

    python bench/engine.py                      on a CUDA device: the models of bench/gpu_plan.py, one after another
    python bench/engine.py MODEL                one of them
    python bench/engine.py MODEL --form FORM    in int8, fp8 or int4; "int8 w8a8", "fp8 w8a8": activations in 8 bits too
    python bench/engine.py MODEL --shallow      only compiles its kernels, with few layers of its widths
    python bench/engine.py --tiny               small models, also on a CPU, to show that the script works

Published configurations with random weights go through the server's own engine: scheduler, batch, model, sampler. A
step ends when its tokens are on the host. Each batch is filled once; then steps are timed as they are captured,
launched anew (eager), and captured but each waited for before the next is launched. The floor of a step is what the
device's measured copy and product rates (in 16 bit) allow for the bytes and operations that it cannot do without.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from gpu_plan import DECODE, EDGE, FORMS, TEXT, StepForm, decode_row, made_row, prefill_row, shallow_row
from random_model import W8A8, RandomModel, Size, label_of
from stage import Given, given

from opsin_kernels.kv_rows import KINDS
from opsin_plugins.blocks.weight_format import Dense
from opsin_plugins.blocks.weight_formats import FORMATS
from opsin_server.engine.engine import Engine
from opsin_server.ipc.messages import Output, Sampling

STORED = [*FORMATS, *(f"{kind}{W8A8}" for kind in KINDS)]
STEPS, WARM = 40, 5
ROUNDS = 8  # of a prefill
GREEDY = Sampling(temperature=0.0)


class Wrong(RuntimeError):
    """A step did something else than what its row says."""


def stepped(engine: Engine) -> list[Output]:
    """One step. Raises Wrong where the engine ended a request because of an error: it keeps that to itself."""
    outputs = engine.step()
    for output in outputs:
        if output.error is not None:
            raise Wrong(f"a step failed: {output.error} (its traceback is above)")
    return outputs


class Decoding:
    """An engine in which `batch` sequences have their prompts behind them and decode."""

    def __init__(self, made: RandomModel, batch: int, text: int, edge: int, steps: int) -> None:
        self.batch = batch
        edges = (edge,) if edge else ()
        length = len(made.request(text, edges, 1, GREEDY)[1].ids)
        # Those whose prompts are taken in first answer meanwhile; none may be done before the last step is timed.
        filling = 2 * -(-batch * length // made.batch_tokens) + batch
        count = filling + len(FORMS) * (steps + 1) + 2
        self.engine = made.engine(batch, length + count + 1, captured=True)
        for _ in range(batch):
            self.engine.submit(*made.request(text, edges, count, GREEDY))
        for _ in range(filling):
            stepped(self.engine)
            if all(s.generated for s in self.engine.sequences.values()):
                break
        if len(self.engine.sequences) != batch or not all(s.generated for s in self.engine.sequences.values()):
            raise Wrong(f"{len(self.engine.sequences)} of {batch} sequences decode after {filling} steps")
        self._graphs = self.engine.runner.graphs

    @property
    def rows(self) -> int:
        """Cached rows of all sequences together."""
        return sum(len(s.tokens) for s in self.engine.sequences.values())

    @contextmanager
    def launching(self, captured: bool) -> Iterator[list[int]]:
        """Within it steps are captured ones or not; the list gets an entry a captured step."""
        runner, replayed = self.engine.runner, list[int]()
        if captured and self._graphs is None:
            raise Wrong("decode steps could not be captured (the traceback is above)")
        if not captured:
            runner.graphs = None
            yield replayed
        else:
            assert self._graphs is not None
            runner.graphs, run = self._graphs, self._graphs.run
            self._graphs.run = lambda *batch: replayed.append(1) or run(*batch)  # type: ignore[func-returns-value]
            try:
                yield replayed
            finally:
                del self._graphs.run
        runner.graphs = self._graphs

    def timed(self, steps: int, form: StepForm) -> tuple[list[float], dict[str, float]]:
        """Milliseconds of each step, and of its parts on the host in the mean."""
        if self.engine.run_ahead != form.ahead:
            self.engine.run_ahead = form.ahead
            stepped(self.engine)  # one step gives the tokens of two, or of none
        took, before = [], self.engine.stats().seconds
        with self.launching(form.captured) as replayed:
            for _ in range(steps):
                began = time.perf_counter()
                outputs = stepped(self.engine)
                took.append(1e3 * (time.perf_counter() - began))
                if len(outputs) != self.batch or any(len(o.ids) != 1 for o in outputs):
                    raise Wrong(f"a step gave {len(outputs)} of {self.batch} tokens")
        if len(replayed) != (steps if form.captured else 0):
            raise Wrong(f"{len(replayed)} of {steps} steps were captured ones")
        seconds = {k.removeprefix("decode."): v for k, v in self.engine.stats().seconds.items()}
        parts = {k: 1e3 * (v - before.get(f"decode.{k}", 0.0)) / steps for k, v in seconds.items() if "." not in k}
        return took, parts


def decode(run: Given, made: RandomModel, batch: int) -> None:
    """All rows of a batch size."""
    plan, tiny = DECODE[made.name], run.device.tiny
    steps, warm = (3, 1) if tiny else (STEPS, WARM)
    text, edge, actual = plan.text, plan.edge, batch
    if tiny:
        text, edge, actual = 20, 64 if plan.edge else 0, 1 + plan.batches.index(batch)
    names = {decode_row(made.label, batch, form): form for form in FORMS}
    decoding: Decoding | None = None
    for name in run.rows.todo(names):
        with run.rows.row(name, seconds=45) as values:
            now, decoding = decoding or Decoding(made, actual, text, edge, steps + warm), None
            now.timed(warm, names[name])
            rows = now.rows
            took, parts = now.timed(steps, names[name])
            decoding = now  # (where something went wrong, the next row begins with an engine of its own)
            visual = actual * sum(i.tokens for i in made.pictures(edge)) if made.spec.cross is not None else 0
            floor = made.floor(actual, rows + actual * steps // 2, visual, actual, run.rates())
            values |= _summed(took) | {"floor_ms": floor, "batch": actual, "cached_rows": rows, "parts_ms": parts}
            values["tokens_s"] = 1e3 * actual / values["ms"]


def prefill(run: Given, made: RandomModel) -> None:
    tiny = run.device.tiny
    edge, rounds = (64, 3) if tiny else (EDGE, ROUNDS)
    for name in run.rows.todo([prefill_row(made.label)]):
        with run.rows.row(name, seconds=45) as values:
            engine, took, length = made.engine(1, 512 if tiny else 8192, captured=False), [], 0
            for _ in range(rounds):
                message, arrays = made.request(TEXT, (edge,), 1, GREEDY)
                length = len(arrays.ids)
                engine.submit(message, arrays)
                began, tokens = time.perf_counter(), 0
                while engine.busy:
                    tokens += sum(len(o.ids) for o in stepped(engine))
                took.append(1e3 * (time.perf_counter() - began))
                if tokens != 1:
                    raise Wrong(f"a prefill gave {tokens} tokens")
            items, rates = made.pictures(edge), run.rates()
            visual = sum(i.tokens for i in items)
            vision = made.vision_floor(items, rates[1])
            floor = vision + made.floor(length, length, visual if made.spec.cross is not None else 0, 1, rates)
            values |= _summed(took[1:]) | {"floor_ms": floor, "vision_floor_ms": vision, "tokens": length}
            values["tokens_s"] = 1e3 * length / values["ms"]


def _summed(took: list[float]) -> dict[str, float]:
    quarters = statistics.quantiles(took, n=4)
    return {"ms": quarters[1], "spread": (quarters[2] - quarters[0]) / 2}


def make(run: Given, name: str, size: Size, row: str, form: str = Dense.name) -> RandomModel | None:
    """A model whose kernels are compiled, and its row."""
    device, made = run.device, None
    again = not run.rows.todo([row])
    with run.rows.row(row, seconds=100) as values:
        began = time.perf_counter()
        made = RandomModel(name, device.device, device.dtype, size, form)
        device.wait()
        weights_s = time.perf_counter() - began
        made.warm()
        values |= {"weights_s": weights_s, "warm_s": time.perf_counter() - began - weights_s, "again": again}
        values["device"] = device.describe()
        values["parameters"] = made.parameters
    return made


def model_rows(run: Given, name: str, stored: str) -> None:
    label = label_of(name, stored)
    wanted = [prefill_row(label), *(decode_row(label, b, form) for b in DECODE[name].batches for form in FORMS)]
    if not run.rows.todo([made_row(label), *wanted]):
        return
    made = make(run, name, "tiny" if run.device.tiny else "whole", made_row(label), stored)
    if made is None:
        return
    prefill(run, made)
    for batch in DECODE[name].batches:
        decode(run, made, batch)
        gc.collect()
        run.device.clear()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=list(DECODE))
    parser.add_argument("--shallow", action="store_true")
    parser.add_argument("--form", choices=STORED, default=Dense.name)
    run = given(parser, "engine", 9)
    for name in [run.args.model] if run.args.model else DECODE:
        if run.args.shallow:
            for row in run.rows.todo([shallow_row(name)]):
                make(run, name, "tiny" if run.device.tiny else "shallow", row)
        else:
            model_rows(run, name, run.args.form)
        gc.collect()
        run.device.clear()


if __name__ == "__main__":
    main()
