"""Streams whose answers are known, in flight while something else is asked: not a bit of them may change."""

from __future__ import annotations

import http.client
import json
import threading
from types import TracebackType
from typing import Any, Self

STREAMS, NEW_TOKENS = 4, 48


class Client:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def send(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> tuple[int, bytes]:
        self._connection.request(method, path, body, {"content-type": kind} if body is not None else {})
        answer = self._connection.getresponse()
        return answer.status, answer.read()


class Neighbours:
    """Half of them greedy, half drawn by a seed, with log-probabilities."""

    def __init__(self, port: int, model: str) -> None:
        self._port, self._model = port, model
        client = Client(port)
        self._alone = [self._ask(client, number) for number in range(STREAMS)]
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(STREAMS)]
        self.answers = 0
        self.different: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        client = Client(self._port)
        while not self._over.is_set():
            try:
                found = self._ask(client, number)
            except Exception as error:  # of whatever kind: it is an answer that did not come
                self.different.append(f"stream {number}: {error!r}")
                return
            self.answers += 1
            if found != self._alone[number]:
                self.different.append(f"stream {number}: {found} is not {self._alone[number]}")

    def _ask(self, client: Client, number: int) -> list[Any]:
        """Its text and its log-probabilities, piece by piece."""
        said = [{"role": "user", "content": f"Hello, I am number {number}. Who are you?"}]
        asked = {
            "model": self._model, "messages": said, "temperature": number % 2, "seed": number, "ignore_eos": True,
            "max_tokens": NEW_TOKENS, "logprobs": True, "top_logprobs": 3, "stream": True,
        }  # fmt: skip
        status, answer = client.send("POST", "/v1/chat/completions", json.dumps(asked).encode())
        lines = [line[6:] for line in answer.split(b"\n\n") if line.startswith(b"data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        if status != 200 or not answer.endswith(b"data: [DONE]\n\n"):
            raise RuntimeError(f"{status} {answer[:500]!r}")
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        return [text, [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]]
