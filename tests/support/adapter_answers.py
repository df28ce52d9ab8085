"""Adapters of opsin-mini that answer differently, and what a cold server says with each of them."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoModelForImageTextToText

from opsin_server.embedded import MODEL, SAMPLES
from support import peft
from support.served import Served, wait_for

# The language model alone; the tower too; a trained projector; another rank.
FORMS: tuple[dict[str, Any], ...] = (
    {"r": 4, "lora_alpha": 8, "targets": r"(q_proj|v_proj)$"},
    {"r": 8, "lora_alpha": 8, "targets": r"(fc1|fc2|q_proj)$"},
    {"r": 2, "lora_alpha": 4, "targets": r"(gate_proj|down_proj)$", "modules_to_save": ["merger"]},
    {"r": 16, "lora_alpha": 16, "use_rslora": True, "targets": r"(qkv|o_proj)$"},
)
TEXT = "Tell me about the shapes, please, and about their colours."


def _picture(name: str) -> dict[str, Any]:
    data = base64.b64encode((SAMPLES / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


# They share beginnings and pictures, so that whatever is kept of one is found by the next.
PROMPTS: tuple[Any, ...] = (
    TEXT,
    f"{TEXT} What else?",
    [_picture("red_circle.png"), {"type": "text", "text": TEXT}],
    [_picture("red_circle.png"), {"type": "text", "text": "How many?"}],
    [_picture("rocket.png"), _picture("red_circle.png"), {"type": "text", "text": TEXT}],
)
TOKENS = 10
BASE = "opsin-mini"


@dataclass(frozen=True)
class Answer:
    """label and digest: of the version that the answer names; empty: the base model's. finish: as it ended."""

    text: str
    label: str
    digest: str
    finish: str | None


def ask(url: str, model: str, prompt: int, client: httpx.Client | None = None) -> Answer:
    """One of PROMPTS, as a stream. Raises httpx.HTTPStatusError, and AssertionError for a stream without an end."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPTS[prompt]}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
    }
    own = client or httpx.Client(trust_env=False, timeout=120)
    try:
        with own.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            if response.is_error:
                response.read()
                response.raise_for_status()
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    finally:
        if client is None:
            own.close()
    assert lines[-1] == "[DONE]", lines[-1]
    chunks = [json.loads(line) for line in lines[:-1]]
    assert not any("error" in chunk for chunk in chunks), chunks
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    headers = response.headers
    digest = headers.get("x-opsin-adapter-digest", "").removeprefix("sha256:")
    assert all(chunk["system_fingerprint"].endswith(digest[:12]) for chunk in chunks)
    return Answer(text, headers.get("x-opsin-adapter-version", ""), digest, choices[-1]["finish_reason"])


class Adapters:
    """count variants, each a PEFT directory and an archive; `expected` is what a cold server says: by digest ("" is the
    base model), of each of PROMPTS."""

    def __init__(self, folder: Path, count: int) -> None:
        model = AutoModelForImageTextToText.from_pretrained(MODEL)
        self.directories = [self._made(model, folder / f"v{number}", number) for number in range(count)]
        self.archives = [packed(directory) for directory in self.directories]
        self.expected: dict[str, list[str]] = {}

    @staticmethod
    def _made(model: Any, directory: Path, seed: int) -> Path:
        form = dict(FORMS[seed % len(FORMS)])
        targets = peft.linears(model, form.pop("targets"))
        targets = [name for name in targets if "merger" not in name or "modules_to_save" not in form]
        return peft.make(model, directory, seed, strength=1.5, target_modules=targets, **form).directory

    def learn(self) -> None:
        """Asks a server of its own, without a prefix cache, each for the first time."""
        named = [part for n, d in enumerate(self.directories) for part in ("--adapter", f"v{n}={d}")]
        with Served("--no-prefix-cache", "--max-loras", "2", *named) as server:
            self.expected[""] = [ask(server.url, BASE, prompt).text for prompt in range(len(PROMPTS))]
            for number in range(len(self.directories)):
                answers = [ask(server.url, f"v{number}", prompt) for prompt in range(len(PROMPTS))]
                assert len({answer.digest for answer in answers}) == 1
                self.expected[answers[0].digest] = [answer.text for answer in answers]

    def check(self, answer: Answer, prompt: int) -> None:
        """It is what a cold server says with the version that it names."""
        assert answer.text == self.expected[answer.digest][prompt], (answer, prompt)


def packed(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in sorted(directory.iterdir()):
            archive.add(file, file.name)
    return buffer.getvalue()


def upload(url: str, name: str, archive: bytes, client: httpx.Client | None = None, **fields: str) -> dict[str, Any]:
    """Raises httpx.HTTPStatusError."""
    post = httpx.post if client is None else client.post
    options: dict[str, Any] = {} if client else {"trust_env": False, "timeout": 60}
    answer = post(f"{url}/v1/adapters", data={"name": name, **fields}, files={"file": ("a.tar", archive)}, **options)
    answer.raise_for_status()
    return answer.json()


def kill_engine(server: Served) -> None:
    """And waits for the next one."""
    engine = server.engine
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: server.children() not in ([engine], []) and server.is_ready(), 60)


def refused(answer: httpx.Response, status: int, says: str) -> None:
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]
