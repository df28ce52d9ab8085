"""Another account's API, read with bounds: it may be anybody's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from opsin_client.connect import BadKeyError, ProxyError, checked_key, full_url, http_client
from opsin_client.migrate.pace import FIRST_TRIES, LATER, MOST_TRIES, Pace
from opsin_client.migrate.problems import GoneError, LaterError, LimitError, MigrateError, RefusedError
from opsin_client.visible import visible

MOST_JSON = 32 * 2**20  # bytes of an answer
MOST_ERROR = 2**16
MOST_ITEMS = 200_000  # of a list: more than any account has
PAGE = 100
GONE = (401, 403, 404, 410)
TIMEOUT = httpx2.Timeout(120, connect=10)

Taken = TypeVar("Taken")


class Source:
    def __init__(self, url: str, api_key: str, pace: Pace | None = None) -> None:
        """Raises MigrateError for what is no URL, or a key that cannot be sent."""
        self.url, self._pace, self._answered = _checked_url(url), pace or Pace(), False
        try:
            self._key, self._client = checked_key(api_key), http_client(self.url)
        except (BadKeyError, ProxyError) as error:
            raise MigrateError(str(error)) from None

    def close(self) -> None:
        self._client.close()

    def object(self, path: str) -> dict[str, Any]:
        return self._json("GET", path)

    def items(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """All of a list, page by page. Raises LimitError for one that does not end."""
        seen: set[str] = set()
        after: str | None = None
        while True:
            page = self._json("GET", path, {**(query or {}), "limit": str(PAGE)} | ({"after": after} if after else {}))
            data = page.get("data")
            if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
                raise MigrateError(f"{self.url}/{path} answers with no list")
            for item in data:
                name = item.get("id")
                if not isinstance(name, str) or name in seen:
                    raise LimitError(f"the list {path} comes round again, or has items without an id")
                seen.add(name)
                after = name
                yield item
            if len(seen) > MOST_ITEMS:
                raise LimitError(f"the list {path} has more than {MOST_ITEMS:,} items")
            if not data or not page.get("has_more"):
                return

    def content(self, path: str, take: Callable[[Iterator[bytes]], Taken]) -> Taken:
        """What `take` makes of the bytes at a path, as they come; where they break off, of all of them once more."""
        return self._asked("GET", path, lambda response: take(self._chunks(response)))

    def answer(self, model: str, messages: list[Any], most_tokens: int) -> str:
        """A chat's, without chance. Raises GoneError for a model that is not there any more."""
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": most_tokens}
        said = self._json("POST", "chat/completions", body=body)
        try:
            content = said["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            raise MigrateError(f"{self.url}/chat/completions answers with no message") from None
        return content if isinstance(content, str) else ""

    # ---------------------------------------------------------------------------------------------------- helpers

    def _json(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> dict[str, Any]:
        data = self._asked(method, path, lambda response: self._read(response, MOST_JSON), query, body)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise MigrateError(f"what answers at {self.url}/{path} is no OpenAI-compatible server")
        return value

    def _asked(
        self,
        method: str,
        path: str,
        take: Callable[[httpx2.Response], Taken],
        query: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> Taken:
        """What `take` makes of a good answer."""
        for attempt in range(1, MOST_TRIES + 1):
            try:
                return self._once(method, path, take, query, body)
            except LaterError as error:
                if attempt >= self._tries(error):
                    raise MigrateError(str(error)) from None
                self._pace.wait(attempt, str(error), error.headers)
        raise AssertionError

    def _tries(self, error: LaterError) -> int:
        """Few where nothing has answered yet: the address may be a wrong one."""
        if self._answered or not isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout):
            return MOST_TRIES
        return 1 if isinstance(error.__cause__, httpx2.ConnectTimeout) else FIRST_TRIES

    def _once(
        self,
        method: str,
        path: str,
        take: Callable[[httpx2.Response], Taken],
        query: Mapping[str, str] | None,
        body: Any,
    ) -> Taken:
        """A key is sent nowhere else: redirects are not followed. Raises LaterError."""
        headers = {"Authorization": f"Bearer {self._key}", "Accept-Encoding": "identity"}
        try:
            with self._client.stream(
                method,
                f"{self.url}/{path}",
                params=query,
                json=body,
                headers=headers,
                timeout=TIMEOUT,
                follow_redirects=False,
            ) as response:
                self._answered = True
                if response.status_code in LATER:
                    raise LaterError(f"{self.url}/{path}: HTTP {response.status_code}", dict(response.headers))
                self._check(response, path)
                return take(response)
        except httpx2.TransportError as error:
            raise LaterError(f"{self.url} does not answer: {error}") from error

    def _check(self, response: httpx2.Response, path: str) -> None:
        status = response.status_code
        if response.is_redirect:
            raise MigrateError(f"{self.url}/{path} redirects, which is not followed: name the address itself")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise MigrateError(f"{self.url}/{path} answers with a compressed body, which was not asked for")
        if status != 200:
            sentence = f"{self.url}/{path}: HTTP {status}{self._why(response)}"
            refused = RefusedError(sentence) if 400 <= status < 500 else MigrateError(sentence)
            raise GoneError(sentence) if status in GONE else refused

    def _why(self, response: httpx2.Response) -> str:
        try:
            message = json.loads(self._read(response, MOST_ERROR))["error"]["message"]
        except (LimitError, ValueError, LookupError, TypeError, RecursionError):
            return ""
        return f": {visible(str(message))[:300]}"

    def _read(self, response: httpx2.Response, most: int) -> bytes:
        data = bytearray()
        for chunk in self._chunks(response):
            data += chunk
            if len(data) > most:
                raise LimitError(f"{response.url} answers with more than {most:,} bytes")
        return bytes(data)

    @staticmethod
    def _chunks(response: httpx2.Response) -> Iterator[bytes]:
        yield from response.iter_raw(2**16)


def _checked_url(url: str) -> str:
    """Raises MigrateError."""
    full = full_url(url).rstrip("/")
    try:
        found = httpx2.URL(full)
    except httpx2.InvalidURL as error:
        raise MigrateError(f"--from {url!a} is no URL: {error}") from None
    if found.scheme not in ("http", "https") or not found.host:
        raise MigrateError(f"--from {url!a} is no address of an API: write one as https://api.openai.com/v1")
    return full


def in_path(name: str) -> str:
    return quote(name, safe="")
