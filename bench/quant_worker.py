"""One system of bench/quant.py in a process of its own. It reads jobs from standard input, a line of JSON each, and
answers with a line of JSON: milliseconds of each decode step, or of each prefill.

    python bench/quant_worker.py opsin|transformers|llama.cpp MODEL [OPTION=VALUE ...]

    {"kind": "decode", "batch": 8, "steps": 48, "context": 64, "pictures": 0}
    {"kind": "prefill", "tokens": 512, "rounds": 2, "pictures": 0}

Every sequence has `pictures` of EDGE x EDGE pixels and `context` tokens behind it, and every step gives each of them
one more, drawn greedily.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

EDGE = 512


class System(Protocol):
    def decode(self, batch: int, steps: int, context: int, pictures: int) -> list[float]: ...

    def prefill(self, tokens: int, rounds: int, pictures: int) -> list[float]: ...


def timed(count: int, act: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        act()
        found.append(1e3 * (time.perf_counter() - began))
    return found


class Opsin:
    """The engine itself: scheduler, batch, model, sampler."""

    def __init__(self, model: Path, options: Mapping[str, str]) -> None:
        from opsin_plugins.loading.open_model import open_model
        from opsin_server.config import EngineConfig
        from opsin_server.engine.startup.load import load_engine

        said: dict[str, Any] = {name: value for name, value in options.items() if name != "threads"}
        config = EngineConfig(str(model), max_context=2048 + 512, max_loras=0, train_memory=0, **said)
        self._engine = load_engine(config, lambda done, total: None).engine
        opened = open_model(model)
        self._architecture, self._spec, self._count = opened.architecture, opened.spec, 0

    def _submit(self, tokens: int, count: int, pictures: int) -> None:
        from opsin_server.engine.startup.warmup import made_up_request
        from opsin_server.ipc.messages import Sampling

        self._count += 1
        greedy = Sampling(temperature=0.0)
        edges = (EDGE,) * pictures
        request = made_up_request(self._architecture, self._spec, str(self._count), tokens, edges, count, greedy)
        self._engine.submit(*request)

    def decode(self, batch: int, steps: int, context: int, pictures: int) -> list[float]:
        for _ in range(batch):
            self._submit(context, batch * (1 + context // 256) + steps + 16, pictures)
        while len(self._engine.sequences) < batch or not all(s.generated for s in self._engine.sequences.values()):
            self._engine.step()
        self._engine.step()
        found = timed(steps, self._engine.step)
        self._drain()
        return found

    def prefill(self, tokens: int, rounds: int, pictures: int) -> list[float]:
        found = []
        for _ in range(rounds):
            self._submit(tokens, 1, pictures)
            found += timed(1, self._drain)
        return found

    def _drain(self) -> None:
        while self._engine.sequences:
            self._engine.step()


class Transformers:
    def __init__(self, model: Path, options: Mapping[str, str]) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        torch.set_grad_enabled(False)
        how = {"dtype": getattr(torch, options.get("dtype", "float32"))}
        folder, how = (model.parent, how | {"gguf_file": model.name}) if model.suffix == ".gguf" else (model, how)
        sees = model.is_dir() and hasattr(AutoConfig.from_pretrained(folder), "vision_config")
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        self._model = kind.from_pretrained(folder, **how).eval()
        self._torch = torch

    def _asked(self, batch: int, tokens: int, pictures: int) -> dict[str, Any]:
        """Of a model of the Idefics3 family a picture of EDGE pixels is one tile."""
        ids = self._torch.randint(10, 1000, (batch, tokens))
        if not pictures:
            return {"input_ids": ids}
        config = self._model.config
        count = (EDGE // config.vision_config.patch_size // config.scale_factor) ** 2
        places = self._torch.full((batch, pictures * count), config.image_token_id)
        pixels = self._torch.randn(batch, pictures, 3, EDGE, EDGE, dtype=self._model.dtype)
        return {"input_ids": self._torch.cat([places, ids], 1), "pixel_values": pixels}

    def decode(self, batch: int, steps: int, context: int, pictures: int) -> list[float]:
        kept, given = None, self._asked(batch, context, pictures)

        def step() -> None:
            nonlocal kept, given
            found = self._model(**given, past_key_values=kept, use_cache=True, logits_to_keep=1)
            kept, given = found.past_key_values, {"input_ids": found.logits[:, -1:].argmax(-1)}

        step()
        step()
        return timed(steps, step)

    def prefill(self, tokens: int, rounds: int, pictures: int) -> list[float]:
        asked = self._asked(1, tokens, pictures)
        return timed(rounds, lambda: self._model(**asked, use_cache=True, logits_to_keep=1))


class LlamaCpp:
    """Its own batches: one token of each sequence a step."""

    def __init__(self, model: Path, options: Mapping[str, str]) -> None:
        import llama_cpp

        self._lib, threads = llama_cpp, int(options["threads"])
        loading = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), loading)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 16 * 256 + 2048, 2048, 512, 16
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._batch = llama_cpp.llama_batch_init(2048, 0, 16)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """rows: token, position, sequence, whether its logits are asked for."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        if self._lib.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not decode")

    def _clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def decode(self, batch: int, steps: int, context: int, pictures: int) -> list[float]:
        import numpy as np

        self._clear()
        for sequence in range(batch):
            self._decode([(10 + i, i, sequence, i == context - 1) for i in range(context)])
        size, at, last = self._lib.llama_vocab_n_tokens(self._vocab), context, [20] * batch

        def step() -> None:
            nonlocal at, last
            self._decode([(token, at, sequence, True) for sequence, token in enumerate(last)])
            rows = (self._lib.llama_get_logits_ith(self._context, i) for i in range(batch))
            last = [int(np.ctypeslib.as_array(row, (size,)).argmax()) for row in rows]
            at += 1

        step()
        return timed(steps, step)

    def prefill(self, tokens: int, rounds: int, pictures: int) -> list[float]:
        def run() -> None:
            self._clear()
            self._decode([(10 + i % 1000, i, 0, i == tokens - 1) for i in range(tokens)])
            self._lib.llama_get_logits_ith(self._context, tokens - 1)[0]

        return timed(rounds, run)


SYSTEMS: Mapping[str, Callable[[Path, Mapping[str, str]], System]] = {
    "opsin": Opsin,
    "transformers": Transformers,
    "llama.cpp": LlamaCpp,
}


def main() -> None:
    name, model, *rest = sys.argv[1:]
    options = dict(one.split("=", 1) for one in rest)
    answers = sys.stdout
    sys.stdout = sys.stderr
    if name != "llama.cpp":
        import torch

        torch.set_num_threads(int(options["threads"]))
    system = SYSTEMS[name](Path(model), options)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        found = getattr(system, job.pop("kind"))(**job)
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
