"""Answers being read, each in a thread: what a client has while its server is ended."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import openai

from support.served import wait_for
from support.talk import MODEL_NAME, sample, user

LONG = 900  # tokens: seconds of work


def endless(number: int = 0, **options: Any) -> dict[str, Any]:
    """A request that goes on for LONG tokens."""
    return {
        "model": MODEL_NAME,
        "messages": [user(sample("cat.png"), f"Question number {number}: what is this?")],
        "temperature": 0,
        "max_tokens": LONG,
        **options,
    }


class Reader(threading.Thread):
    """Reads one answer through the SDK; `error` is what it raised."""

    def __init__(self, client: openai.OpenAI, number: int, *, stream: bool = True, tokens: int = LONG) -> None:
        super().__init__(daemon=True)
        self._client, self._number, self._stream, self._tokens = client, number, stream, tokens
        self.chunks = 0
        self.finish: str | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        options = {"max_tokens": self._tokens, "extra_body": {"ignore_eos": True}}
        try:
            answer = self._client.chat.completions.create(**endless(self._number, stream=self._stream, **options))
            if not self._stream:
                self.finish = answer.choices[0].finish_reason
                return
            for chunk in answer:
                self.chunks += 1
                if chunk.choices:
                    self.finish = chunk.choices[0].finish_reason or self.finish
        except Exception as error:
            self.error = error

    def end(self, seconds: float = 120) -> Reader:
        self.join(seconds)
        assert not self.is_alive(), "an answer neither ended nor failed: silence"
        return self


class RawReader(threading.Thread):
    """Reads one stream as bytes. `clean`: whether HTTP says that it came to its end."""

    def __init__(self, url: str, number: int, headers: dict[str, str] | None = None, tokens: int = LONG) -> None:
        super().__init__(daemon=True)
        self._url, self._number, self._headers, self._tokens = url, number, headers, tokens
        self.text = ""
        self.clean = False
        self.error: BaseException | None = None
        self.start()

    @property
    def chunks(self) -> int:
        return self.text.count("\n\n")

    def run(self) -> None:
        body = endless(self._number, stream=True, ignore_eos=True, max_tokens=self._tokens)
        with httpx.Client(timeout=120, trust_env=False) as client:
            try:
                with client.stream(
                    "POST", f"{self._url}/v1/chat/completions", json=body, headers=self._headers
                ) as answer:
                    for text in answer.iter_text():
                        self.text += text
                self.clean = True
            except httpx.HTTPError as error:
                self.error = error

    end = Reader.end


def all_under_way(readers: list[Any], chunks: int = 3) -> None:
    """Every one has got some of its answer."""
    wait_for(lambda: all(r.chunks >= chunks or not r.is_alive() for r in readers), 120, "not all streams began")
    assert all(r.is_alive() for r in readers), [getattr(r, "error", None) for r in readers]
