"""An account's API as a stranger might have it: every answer can be replaced, and any request can break off."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = bytes | dict[str, Any] | Callable[["Handler"], None]
PAGE = 2  # items of a page, whatever is asked for


class FakeSource:
    """answers: by path; a list is a path's items. log: paths that were asked for, each with its query. breaks_at: the
    number of the request, from 1 on, that is answered by half."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer | list[dict[str, Any]]] = {}
        self.log: list[str] = []
        self.breaks_at = 0
        self.url = ""

    def add_job(self, job_id: str, rows: list[dict[str, Any]], **changes: Any) -> None:
        train = f"file-{job_id}"
        job = {
            "id": job_id,
            "object": "fine_tuning.job",
            "created_at": 100,
            "status": "succeeded",
            "model": "gpt-4o-2024-08-06",
            "fine_tuned_model": f"ft:gpt-4o-2024-08-06:acme::{job_id}",
            "training_file": train,
            "validation_file": None,
            "result_files": [],
            "method": {"type": "supervised"},
            "metadata": {},
            **changes,
        }
        self.answers.setdefault("fine_tuning/jobs", []).append(job)  # type: ignore[union-attr]
        self.answers[f"fine_tuning/jobs/{job_id}"] = job
        self.answers[f"fine_tuning/jobs/{job_id}/events"] = [{"id": f"ev{n}", "message": str(n)} for n in range(5)]
        self.answers[f"fine_tuning/jobs/{job_id}/checkpoints"] = []
        self.answers[f"files/{train}"] = {"id": train, "object": "file"}
        self.answers[f"files/{train}/content"] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        self.answers["chat/completions"] = {"choices": [{"message": {"content": "an old answer"}}]}


class Handler(BaseHTTPRequestHandler):
    source: FakeSource

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/v1/")
        self.source.log.append(f"{self.command} {path} {parts.query}".strip())
        answer = self.source.answers.get(path)
        if answer is None:
            self.send(404, json.dumps({"error": {"message": f"no {path}"}}).encode())
        elif isinstance(answer, list):
            self.send(200, json.dumps(_page(answer, parse_qs(parts.query))).encode())
        elif isinstance(answer, dict):
            self.send(200, json.dumps(answer).encode())
        elif isinstance(answer, bytes):
            self.send(200, answer)
        else:
            answer(self)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.do_GET()

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if len(self.source.log) == self.source.breaks_at:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def send_without_end(self, chunk: bytes = b"x" * 65536) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        try:
            while True:
                self.wfile.write(chunk)
        except OSError:
            return

    def log_message(self, *given: Any) -> None:
        return


def _page(items: list[dict[str, Any]], query: dict[str, list[str]]) -> dict[str, Any]:
    after = query.get("after", [None])[0]
    ids = [item["id"] for item in items]
    start = 0 if after is None else ids.index(after) + 1
    return {"object": "list", "data": items[start : start + PAGE], "has_more": start + PAGE < len(items)}


@contextmanager
def fake_source() -> Iterator[FakeSource]:
    found = FakeSource()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Handler,), {"source": found}))
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
