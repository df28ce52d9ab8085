"""What a server says of the model that it serves, and that finding it out keeps nobody waiting."""

from __future__ import annotations

import os
import time
from pathlib import Path

from opsin_plugins.loading.content_digest import ContentDigest
from opsin_plugins.loading.digest_store import NAME
from opsin_plugins.loading.files import read_model_files
from opsin_server import __version__
from support.served import Served, wait_for
from support.served_checks import works
from support.talk import MINI, MODEL_NAME

NEVER_DONE = """
import opsin_server.api.model_digest as digest

digest.RESTS = 1e9
"""


def test_the_embedded_models_digest_is_told_and_nothing_is_kept_of_it(served: Served):
    wait_for(lambda: served.get("/version").json()["digest"])
    said = served.get("/version").json()
    assert said.pop("fingerprint").startswith("fp_")
    digest = ContentDigest(read_model_files(Path(MINI))).compute()
    assert said == {"version": __version__, "model": MODEL_NAME, "digest": digest}
    assert not (Path(MINI) / NAME).exists()


def test_a_server_that_is_not_done_with_hashing_serves_and_stops(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(NEVER_DONE)
    packages = os.environ.get("PYTHONPATH", "")
    with Served(env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{packages}"}) as server:
        works(server)
        assert server.get("/version").json()["digest"] is None
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < 20  # (which take one on a machine that does nothing else)
