"""The Dockerfile, without a container engine: hadolint, and that it fits the project and the server."""

from __future__ import annotations

import http.server
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from opsin_server.api.listen_addresses import addresses, check_guarded
from opsin_server.api.middleware.paths import PROBES
from opsin_server.config import EngineConfig, ServerConfig
from opsin_server.errors import ConfigError

ROOT = Path(__file__).parents[2]
LINES = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text())).splitlines()
STAGES = [index for index, line in enumerate(LINES) if line.startswith("FROM ")]
FINAL = LINES[STAGES[-1] :]


def only(instruction: str) -> str:
    """What an instruction of the final stage says."""
    (line,) = (line for line in FINAL if line.startswith(instruction + " "))
    return line.removeprefix(instruction + " ").strip()


def test_hadolint() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([tool, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_it_runs_as_a_numeric_user_who_is_not_root() -> None:
    user, group = only("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_what_lasts_lies_in_a_volume_of_that_user() -> None:
    volume = only("VOLUME")
    assert f"XDG_DATA_HOME={volume}" in only("ENV").split()
    user, group = only("USER").split(":")
    (made,) = (line for line in FINAL if line.startswith("RUN install -d"))
    assert made.split()[3:] == ["-m", "0700", "-o", user, "-g", group, volume]
    assert FINAL.index(made) < FINAL.index(f"VOLUME {volume}"), "what is made after it is not kept"


def test_it_stops_and_starts_as_the_server_does() -> None:
    assert only("STOPSIGNAL") == "SIGTERM"
    assert json.loads(only("ENTRYPOINT")) == ["opsin", "serve", "--host", "0.0.0.0"]
    assert int(only("EXPOSE")) == ServerConfig(EngineConfig("x")).port
    assert "PYTHONSAFEPATH=1" in only("ENV")


def test_the_health_check_needs_no_key_and_no_curl() -> None:
    command = json.loads(only("HEALTHCHECK").partition(" CMD ")[2])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "HEALTHCHECK", "exec")
    (port, path) = re.findall(r"http://127\.0\.0\.1:(\d+)(/[a-z/]+)", command[2])[0]
    assert port == only("EXPOSE")
    assert path in PROBES


def test_the_health_check_asks_no_proxy() -> None:
    """Docker gives containers the variables of its own configuration."""
    command = json.loads(only("HEALTHCHECK").partition(" CMD ")[2])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Live) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        program = command[2].replace(only("EXPOSE"), str(server.server_port))
        environment = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60)
        server.shutdown()
    assert done.returncode == 0, done.stderr


class Live(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_without_a_key_it_refuses() -> None:
    config = ServerConfig(EngineConfig("x"), host="0.0.0.0")
    with pytest.raises(ConfigError, match="--api-key"):
        check_guarded(config, addresses(config.host))


def test_what_it_copies_is_sent_and_is_all_that_the_wheel_needs() -> None:
    copied = set()
    for line in LINES[STAGES[0] : STAGES[-1]]:
        if line.startswith("COPY "):
            copied |= set(shlex.split(line)[1:-1])
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {path.split("/")[0] for path in packages} | {project["project"]["readme"]}
    needed |= set(project["project"]["license-files"])
    assert needed <= copied
    assert all((ROOT / path).exists() for path in copied)
