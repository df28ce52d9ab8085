"""What a server keeps, from its making to its end, each answer held against the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import requests
import schemathesis

from support import api_cases
from support.fine_tuning import lines
from support.served import wait_for
from support.talk import MODEL_NAME

FORM = "multipart/form-data"
ENDPOINT = "/v1/chat/completions"
BODY = {"model": MODEL_NAME, "messages": [api_cases.USER], "max_tokens": 2}
LINE = json.dumps({"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": BODY}).encode() + b"\n"
WRONG = b"not JSON\n" * 12
OVER = ("succeeded", "failed", "completed")


class Lives:
    """In the order of its methods."""

    def __init__(self, document: dict[str, Any], url: str) -> None:
        self._operations, self._url = schemathesis.openapi.from_dict(document), url

    def ask(self, name: str, body: Any = None, **path: str) -> dict[str, Any]:
        """By the operation's name. A form has bytes among its fields."""
        operation = self._operations.find_operation_by_id(name)
        files = {field: (field, given) for field, given in (body or {}).items() if isinstance(given, bytes)}
        given = {} if body is None else {"body": body, "media_type": FORM if files else api_cases.JSON}
        case = operation.Case(path_parameters=path, **given)
        if files:
            fields = {field: text for field, text in body.items() if field not in files}
            address = self._url + case.formatted_path
            with requests.Session() as session:
                session.trust_env = False
                response = session.request(case.method, address, data=fields, files=files, timeout=60)
        else:
            response = case.call(base_url=self._url, timeout=60)
        assert response.status_code == 200, response.content
        api_cases.check(case, schemathesis.Response.from_any(response), operation.definition.raw, changed=True)
        found: dict[str, Any] = response.json()
        return found

    def until_over(self, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = wait_for(lambda: (now := ask())["status"] in OVER and now, 90, "it was not over")
        return found

    def files(self) -> tuple[str, str, str]:
        """Ids: for training, for a batch, and one that is wrong as either."""
        made = [
            self.ask("createFile", {"file": data, "purpose": purpose})["id"]
            for data, purpose in ((lines(range(4)), "fine-tune"), (LINE, "batch"), (WRONG, "batch"))
        ]
        assert self.ask("retrieveFile", file_id=made[0])["bytes"] == len(lines(range(4)))
        assert [file["id"] for file in self.ask("listFiles")["data"]] == made[::-1]
        return made[0], made[1], made[2]

    def uploads(self) -> None:
        about = {"bytes": len(WRONG), "filename": "b", "mime_type": "x", "purpose": "fine-tune"}
        first, second = (self.ask("createUpload", about)["id"] for _ in range(2))
        part = self.ask("addUploadPart", {"data": WRONG}, upload_id=first)["id"]
        file = self.ask("completeUpload", {"part_ids": [part]}, upload_id=first)["file"]["id"]
        assert self.ask("cancelUpload", upload_id=second)["file"] is None
        self.job(file, "failed")
        assert self.ask("deleteFile", file_id=file)["deleted"]

    def job(self, file: str, status: str) -> None:
        asked = {"model": MODEL_NAME, "training_file": file, "metadata": {"a": "b"}}
        asked["method"] = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
        job = self.ask("createFineTuningJob", asked)["id"]
        ended = self.until_over(lambda: self.ask("retrieveFineTuningJob", job_id=job))
        assert (ended["status"], ended["error"] is None) == (status, status == "succeeded")
        assert self.ask("listPaginatedFineTuningJobs")["data"][0] == ended
        assert self.ask("listFineTuningEvents", job_id=job)["data"]
        assert bool(self.ask("listFineTuningJobCheckpoints", job_id=job)["data"]) == (status == "succeeded")

    def batch(self, file: str, status: str) -> None:
        asked = {"input_file_id": file, "endpoint": ENDPOINT, "completion_window": "24h", "metadata": {"a": "b"}}
        batch = self.ask("createBatch", asked)["id"]
        ended = self.until_over(lambda: self.ask("retrieveBatch", batch_id=batch))
        assert (ended["status"], ended["errors"] is None) == (status, status == "completed")
        assert self.ask("listBatches")["data"][0] == ended
