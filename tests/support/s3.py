"""An S3 server for tests, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from itertools import count
from typing import Any

import httpx

from support import dying
from support.served import free_port, wait_for

KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "a secret of tests", "AWS_DEFAULT_REGION": "us-east-1"}


class S3:
    """`environment` is what a process needs to reach it."""

    def __init__(self) -> None:
        port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, preexec_fn=dying.with_parent, **quiet)
        self._endpoint = f"http://127.0.0.1:{port}"
        self.environment = {**KEYS, "AWS_ENDPOINT_URL": self._endpoint}
        self._numbers = count()
        try:
            wait_for(self._answers, 60, "the S3 server did not answer")
            self.client = self._client()
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the S3 server ended"
        try:
            return httpx.get(f"{self._endpoint}/moto-api/", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def _client(self) -> Any:
        import boto3  # half a second

        session = boto3.Session(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"])
        return session.client("s3", region_name=KEYS["AWS_DEFAULT_REGION"], endpoint_url=self._endpoint)

    def bucket(self) -> str:
        """The URL of an empty place in a new bucket."""
        name = f"bucket-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}/some/prefix"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
