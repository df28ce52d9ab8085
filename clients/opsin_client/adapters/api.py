"""The server's routes of adapters and aliases, as calls; and what they answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from opsin_client.adapters.problems import AdapterCommandError
from opsin_client.adapters.upload import Upload
from opsin_client.connect import BadKeyError, ProxyError, checked_key, full_url, http_client


class Version(msgspec.Struct):
    """One version of an adapter. bytes: of the file that is served. current: what the adapter's bare name means."""

    id: str
    version: int
    current: bool
    digest: str
    rank: int
    targets: list[str]
    bytes: int
    created_at: int
    origin: str
    warnings: list[str]
    base_digest: str | None = None
    pixel_budget: dict[str, int] | None = None


class Adapter(msgspec.Struct):
    """tier: where the current version lies. unservable: why this server, as it was started, cannot serve it."""

    id: str
    current_version: int | None
    tier: str | None
    pinned: bool
    created_at: int
    updated_at: int
    last_used_at: int | None
    unservable: str | None
    versions: list[Version]
    aliases: list[str]

    @property
    def current(self) -> Version | None:
        return next((version for version in self.versions if version.current), None)


class Change(msgspec.Struct):
    """An adapter after a change."""

    id: str
    current_version: int | None
    pinned: bool


class Alias(msgspec.Struct):
    id: str
    target: str
    updated_at: int


class Listed(msgspec.Struct):
    data: list[Adapter]


class ListedAliases(msgspec.Struct):
    data: list[Alias]


class Deleted(msgspec.Struct):
    id: str
    deleted: bool


Answer = TypeVar("Answer", bound=msgspec.Struct)


class AdapterApi:
    """Every call raises AdapterCommandError, with the server's sentence where there is one."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url = full_url(url).rstrip("/")
        if not self.url.endswith("/v1"):  # these routes have no other place
            self.url += "/v1"
        with self._failures():
            self._http = http_client(self.url)
            self._http.headers["authorization"] = f"Bearer {checked_key(api_key)}"

    def close(self) -> None:
        self._http.close()

    # raw: the server's own JSON, for who asked for that

    def adapters(self) -> tuple[list[Adapter], Any]:
        answer, raw = self._call("GET", "/adapters", Listed)
        return answer.data, raw

    def adapter(self, name: str) -> tuple[Adapter, Any]:
        return self._call("GET", f"/adapters/{_in_path(name)}", Adapter)

    def aliases(self) -> tuple[list[Alias], Any]:
        answer, raw = self._call("GET", "/aliases", ListedAliases)
        return answer.data, raw

    def upload(self, upload: Upload, chunks: Iterable[bytes]) -> Version:
        """chunks: the upload's own, sent as they are read."""
        headers = {"content-type": upload.content_type, "content-length": str(upload.length)}
        return self._call("POST", "/adapters", Version, content=chunks, headers=headers)[0]

    def load_path(self, name: str, path: str, *, promote: bool, force: bool) -> Version:
        body = {"name": name, "path": path, "promote": promote, "force": force}
        return self._call("POST", "/adapters", Version, json=body)[0]

    def promote(self, name: str, version: int) -> Change:
        return self._call("POST", f"/adapters/{_in_path(name)}/promote", Change, json={"version": version})[0]

    def roll_back(self, name: str) -> Change:
        return self._call("POST", f"/adapters/{_in_path(name)}/rollback", Change)[0]

    def pin(self, name: str, pinned: bool) -> Change:
        return self._call("POST", f"/adapters/{_in_path(name)}/pin", Change, json={"pinned": pinned})[0]

    def unload(self, name: str, version: int | None) -> None:
        self._call("DELETE", f"/adapters/{_in_path(name)}", Deleted, params=_of_version(version))

    def set_alias(self, alias: str, target: str) -> Alias:
        return self._call("POST", "/aliases", Alias, json={"alias": alias, "target": target})[0]

    def delete_alias(self, alias: str) -> None:
        self._call("DELETE", f"/aliases/{_in_path(alias)}", Deleted)

    @contextmanager
    def download(self, name: str, version: int | None) -> Iterator[Iterator[bytes]]:
        """A tar, as it comes."""
        path = f"{self.url}/adapters/{_in_path(name)}/download"
        with (
            self._failures(),
            self._http.stream("GET", path, params=_of_version(version), follow_redirects=False) as response,
        ):
            if response.status_code != 200:
                response.read()
                self._refuse(response)
            yield response.iter_bytes()

    def _call(self, method: str, path: str, kind: type[Answer], **options: Any) -> tuple[Answer, Any]:
        with self._failures():
            response = self._http.request(method, self.url + path, follow_redirects=False, **options)
        if not response.is_success:
            self._refuse(response)
        try:
            raw = msgspec.json.decode(response.content)
            return msgspec.convert(raw, kind), raw
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
            raise self._stranger(response) from None

    def _refuse(self, response: httpx2.Response) -> None:
        try:
            error = response.json()["error"]
            message, code = error["message"], error["code"]
        except (ValueError, LookupError, TypeError):
            raise self._stranger(response) from None
        if code == "unknown_url" or not isinstance(message, str):
            raise self._stranger(response)
        raise AdapterCommandError(message)

    def _stranger(self, response: httpx2.Response) -> AdapterCommandError:
        status = f"HTTP {response.status_code}"
        return AdapterCommandError(f"what answers at {self.url} is no server that has adapters ({status})")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Of the way to the server, as sentences."""
        try:
            yield
        except (BadKeyError, ProxyError) as error:
            raise AdapterCommandError(str(error)) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            hint = "start one: opsin serve; one elsewhere: --url"
            raise AdapterCommandError(f"no server answers at {self.url} ({hint})") from None
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise AdapterCommandError(f"{self.url} is no URL: {error}") from None
        except httpx2.TimeoutException:
            raise AdapterCommandError(f"{self.url} does not answer any more") from None
        except httpx2.RequestError as error:
            raise AdapterCommandError(f"{self.url} closed the connection before its answer was complete") from error


def _in_path(name: str) -> str:
    return quote(name, safe="/")


def _of_version(version: int | None) -> dict[str, int]:
    return {} if version is None else {"version": version}
