"""An S3 server for tests, in this process."""

from __future__ import annotations

import logging
from itertools import count
from typing import Any

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "a secret of tests",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class S3:
    """`environment` is what a process needs to reach it."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer  # a second of imports

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}
        self.client, self._numbers = self._client(), count()

    def _client(self) -> Any:
        import boto3

        keys = (CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
        session = boto3.Session(*keys, region_name=CREDENTIALS["AWS_DEFAULT_REGION"])
        return session.client("s3", endpoint_url=self.endpoint)

    def bucket(self) -> str:
        """The URL of an empty place in a new bucket."""
        name = f"bucket-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}/some/prefix"

    def stop(self) -> None:
        self._server.stop()
