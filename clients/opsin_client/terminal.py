"""`opsin chat`: a conversation in the terminal with any OpenAI-compatible server, pictures included."""

from __future__ import annotations

import base64
import mimetypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import httpx2
import openai
from rich.console import Console

from opsin_client.connect import BadKeyError, ProxyError, checked_key, connect, full_url
from opsin_client.say import say

DEMONSTRATION = "opsin-mini"
ABOUT = "opsin-mini is a demonstration model for drawings, emoji, digits and letters, not for photographs."


class NotAServerError(Exception):
    """Something else answers at the URL."""


class BrokenAnswerError(Exception):
    """The server left in the middle of an answer."""


class NotAPictureError(Exception):
    """A file that cannot be read, or whose name says that it is something else."""


def image_part(path: Path) -> dict[str, Any]:
    """A picture file as a message part. Raises NotAPictureError, also when it cannot be read."""
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    if not kind.startswith("image/"):
        raise NotAPictureError(f"{path} is no image file ({kind})")
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise NotAPictureError(f"{path}: {error.strerror}") from error
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


class Terminal:
    def __init__(self, url: str, api_key: str, model: str | None, temperature: float, max_tokens: int | None) -> None:
        self.url, self.api_key, self.model = full_url(url), api_key, model
        self.options: dict[str, Any] = {"temperature": temperature}
        if max_tokens is not None:
            self.options["max_tokens"] = max_tokens
        self.console = Console()
        self.messages: list[dict[str, Any]] = []

    def run(self, question: str, images: Sequence[Path]) -> None:
        """One question, or a conversation when there is none. Leaves with one sentence when the server fails it."""
        try:
            key = checked_key(self.api_key)
            parts = list(map(image_part, images))
            self.client = connect(self.url, key)
            self.model = self.model or self._first_model()
            if self.model == DEMONSTRATION:
                say(ABOUT, style="dim")
            if question:
                self.ask(question, parts)
                return
            while True:
                self.ask(self.console.input("[bold]> [/bold]"), parts)
                parts = []
        except (EOFError, KeyboardInterrupt):
            self.console.print()
        except openai.APIConnectionError:
            self._leave(f"no server answers at {self.url} (start one: opsin serve; one elsewhere: --url)")
        except openai.APIError as error:
            self._leave(error.message)
        except (BadKeyError, BrokenAnswerError, NotAPictureError, NotAServerError, ProxyError) as error:
            self._leave(str(error))
        except httpx2.InvalidURL as error:
            self._leave(f"{self.url} is no URL: {error}")

    def ask(self, question: str, parts: Sequence[dict[str, Any]]) -> str:
        """Streams the answer to the terminal; question and answer become part of the conversation."""
        content = [*parts, {"type": "text", "text": question}]
        stream = self.client.chat.completions.create(
            model=self.model or "",
            messages=cast("Any", [*self.messages, {"role": "user", "content": content}]),
            stream=True,
            **self.options,
        )
        answer, chunk = "", None
        try:
            for chunk in stream:
                text = chunk.choices[0].delta.content if chunk.choices else None
                if text:
                    answer += text
                    self.console.out(text, end="", highlight=False)
        except openai.APIConnectionError as error:
            self.console.print()
            raise BrokenAnswerError(f"the answer broke off: {self.url} closed the connection") from error
        if chunk is None:
            raise NotAServerError(f"what answers at {self.url} is no OpenAI-compatible server")
        self.console.print()
        self.messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        return answer

    def _first_model(self) -> str:
        try:
            return self.client.models.list().data[0].id
        except (AttributeError, IndexError, TypeError) as error:  # the SDK, given something that is no list of models
            raise NotAServerError(f"what answers at {self.url} is no OpenAI-compatible server") from error

    @staticmethod
    def _leave(why: str) -> None:
        say(f"opsin chat: {why}", style="red")
        sys.exit(1)
