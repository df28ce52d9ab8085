"""What adapters cost: decode steps with none, one and many of them, against the base model and against PEFT.

python bench/adapters.py            a random model of the 135M class at 16 streams; ten minutes
python bench/adapters.py --quick    opsin-mini, fewer rounds; a minute

The same engine computes every form in turn, round by round, beside one that was started without slots; so a ratio is of
two times that lie seconds apart. Adapters have rank 16 in every linear of tower, projector and language model.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import models
import numpy as np
import report
import torch
from stats import Spread
from tables import table

from opsin_plugins.loading.open_model import open_model
from opsin_server.adapters.adapter_files import read_adapter_files
from opsin_server.adapters.base_model import AdapterLimits, BaseModel
from opsin_server.adapters.convert import convert
from opsin_server.config import EngineConfig
from opsin_server.engine.engine import Engine
from opsin_server.engine.startup.load import load_engine
from opsin_server.ipc.messages import AdapterRef, Arrays, Sampling, Submit

RANK, SLOTS = 16, 32
PROMPT, STEPS = 32, 24
PEFT_TOKENS = 8


@dataclass(frozen=True)
class Form:
    """Streams at the same time, and how many adapters they share; None: an engine without slots."""

    name: str
    streams: int
    adapters: int | None


FORMS = (
    Form("base, no slots", 16, None),
    Form("base, empty slots", 16, 0),
    Form("1 adapter", 16, 1),
    Form("8 adapters", 16, 8),
    Form("16 adapters", 16, 16),
    Form("base of 32, no slots", 32, None),
    Form("32 adapters", 32, 32),
)
BASE_OF = {16: "base, no slots", 32: "base of 32, no slots"}


def make_adapters(directory: Path, folder: Path, count: int) -> list[Path]:
    """As PEFT saves them. B is random, so that nothing is skipped."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"))
    made = []
    for number in range(count):
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        made.append(folder / f"adapter-{number}")
        peft.save_pretrained(made[-1])
    return made


def convert_all(directory: Path, adapters: Sequence[Path]) -> list[AdapterRef]:
    base = BaseModel(open_model(directory), AdapterLimits(RANK))
    refs = []
    for adapter in adapters:
        files, file = read_adapter_files(adapter), adapter / "engine.safetensors"
        convert(files.config, files.weights, base).write(file)
        refs.append(AdapterRef(hashlib.sha256(file.read_bytes()).digest(), str(file)))
    return refs


def submit(engine: Engine, name: str, ids: Sequence[int], tokens: int, adapter: AdapterRef | None) -> None:
    axes = max(1, len(engine.runner.model.spec.decoder.rope.sections))
    message = Submit(name, Sampling(temperature=0.0), tokens, (), 0, axes, adapter=adapter)
    positions = np.broadcast_to(np.arange(len(ids), dtype=np.int32), (axes, len(ids)))
    engine.submit(message, Arrays(np.asarray(ids, np.int32), np.ascontiguousarray(positions), ()))


def decode_seconds(engine: Engine, refs: Sequence[AdapterRef | None], streams: int) -> float:
    """Of a decode step with all streams, the median of STEPS."""
    chance = np.random.default_rng(streams)
    for number in range(streams):
        ids = chance.integers(300, 1000, PROMPT).tolist()
        submit(engine, f"{number}", ids, STEPS + PROMPT + streams, refs[number % len(refs)])
    while any(s.remaining > 1 or not s.generated for s in engine.sequences.values()):
        engine.step()
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - began)
    for name in list(engine.sequences):
        engine.cancel(name)
    return sorted(seconds)[STEPS // 2]


def rounds_of(directory: Path, refs: Sequence[AdapterRef], rounds: int) -> dict[str, list[float]]:
    """Seconds of a decode step, by form."""

    def engine(slots: int) -> Engine:
        config = EngineConfig(
            str(directory), max_loras=slots, max_lora_rank=RANK, lora_projectors=False, max_context=256,
            prefix_cache=False,
        )  # fmt: skip
        return load_engine(config, lambda done, total: None).engine

    with_slots, without = engine(SLOTS), engine(0)
    found: dict[str, list[float]] = {form.name: [] for form in FORMS}
    for number in range(rounds + 1):  # the first is for warming up
        for form in FORMS:
            chosen: Sequence[AdapterRef | None] = refs[: form.adapters] if form.adapters else [None]
            seconds = decode_seconds(without if form.adapters is None else with_slots, chosen, form.streams)
            if number:
                found[form.name].append(seconds)
    return found


def peft_tokens_per_second(directory: Path, adapters: Sequence[Path], streams: int) -> float:
    """PEFT on transformers: the requests of each adapter are one batch, and the adapter is switched between batches."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    peft = PeftModel.from_pretrained(model, adapters[0], "0")
    for number, adapter in enumerate(adapters[1:], 1):
        peft.load_adapter(adapter, str(number))
    each = streams // len(adapters)
    ids = torch.randint(300, 1000, (each, PROMPT))

    def generate(tokens: int) -> float:
        began = time.perf_counter()
        for number in range(len(adapters)):
            peft.set_adapter(str(number))
            peft.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                do_sample=False, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        return time.perf_counter() - began

    generate(2)
    one, many = generate(1), generate(PEFT_TOKENS + 1)  # the prompt's time is in both
    return streams * PEFT_TOKENS / (many - one)


def measure(name: str, folder: Path, rounds: int) -> tuple[list[list[str]], list[str]]:
    directory = models.prepare(name, folder)
    adapters = make_adapters(directory, folder / "adapters", SLOTS)
    found = rounds_of(directory, convert_all(directory, adapters), rounds)
    rows = []
    for form in FORMS:
        base = found[BASE_OF[form.streams]]
        ratios = Spread.of([b / seconds for b, seconds in zip(base, found[form.name], strict=True)])
        speed = Spread.of([form.streams / seconds for seconds in found[form.name]])
        rows.append([name, form.name, str(form.streams), f"{speed.median:.0f}", str(ratios)])
    peft = peft_tokens_per_second(directory, adapters[:8], 16)
    ours = 16 / sorted(found["8 adapters"])[rounds // 2]
    note = (
        f"{name}: PEFT on transformers, 16 requests of 8 adapters, switched: {peft:.1f} tok/s; here {ours:.1f}, "
        f"{ours / peft:.1f} times as many."
    )
    return rows, [note]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="opsin-mini alone, two rounds")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mini",) if given.quick else ("mini", "135m"):
            more, note = measure(name, Path(folder) / name, 2 if given.quick else given.rounds)
            rows += more
            notes += note
    about = (
        f"Decode steps of the engine, one thread, float32: prompts of {PROMPT} tokens, the median of {STEPS} steps, "
        f"{given.rounds} rounds of all forms in turn. Adapters have rank {RANK} in all linears. Against the base: "
        "tokens per second over those of an engine without slots in the same round, median (min to max)."
    )
    shown = table(["model", "form", "streams", "tok/s", "against the base"], rows) + "\n\n" + "\n".join(notes)
    report.write_page("adapters", "Adapters", datetime.now(UTC), about, shown, given.out)


if __name__ == "__main__":
    main()
