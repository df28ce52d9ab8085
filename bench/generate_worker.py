"""What a user could script: one left-padded `generate` over a batch. Reads jobs as lines of JSON, answers in lines.

A job is {"requests": FILE, "batch": N, "new_tokens": N}. The clock runs from the requests in hand (a data URL, a text)
to the text: the picture's decoding, the template and the processor are in it, as they are for a server.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import no_video
import torch
from loadgen import Answer
from machine import Meter
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration
from transformers.generation.streamers import BaseStreamer


class Clock(BaseStreamer):
    """Notes when each step's tokens are there. The first call brings the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
        else:
            self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Generator:
    def __init__(self, model: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(model)  # type: ignore[no-untyped-call]
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32)

    @torch.no_grad()
    def answer(self, conversations: list[list[dict[str, Any]]], new_tokens: int) -> list[Answer]:
        start, clock = time.perf_counter(), Clock()
        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        out = self.model.generate(
            **inputs, streamer=clock, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None
        )
        texts = self.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        end = time.perf_counter()
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [
            Answer(start, clock.times[0], end, clock.times, length, len(clock.times), text)
            for length, text in zip(lengths, texts, strict=True)
        ]


def as_processor_input(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's parts as transformers' processors take them."""
    out = []
    for message in messages:
        parts = [
            {"type": "image", "url": p["image_url"]["url"]} if p["type"] == "image_url" else p
            for p in message["content"]
        ]
        out.append({"role": message["role"], "content": parts})
    return out


def run(generator: Generator, job: dict[str, Any]) -> dict[str, Any]:
    lines = Path(job["requests"]).read_text().splitlines()
    conversations = [as_processor_input(json.loads(line)) for line in lines]
    meter, answers = Meter(), []
    for i in range(0, len(conversations), job["batch"]):
        answers += generator.answer(conversations[i : i + job["batch"]], job["new_tokens"])
    return meter.read() | {"client_cpu_seconds": 0.0, "answers": [asdict(a) for a in answers]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    model = parser.parse_args().model
    no_video.install()
    generator = Generator(model)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(generator, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
