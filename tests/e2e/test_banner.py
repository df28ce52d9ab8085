"""What a server prints when it is ready can be pasted, wherever it listens and whatever its model is called."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess

import httpx
import pytest

from support.served import Served
from support.talk import MINI


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")


def pasted(server: Served) -> tuple[str, str]:
    """The model and the answer of the command that is printed last, from a folder that is not the server's."""
    command = server.stderr.splitlines()[-1]
    environment = server.room.environment()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd="/", env=environment, timeout=60)
    answer = json.loads(done.stdout)
    return answer["model"], answer["choices"][0]["message"]["content"]


def test_the_command_that_it_prints_can_be_pasted(tmp_path):
    folder = tmp_path / 'it\'s a "$HOME" \\model [red] 模型'
    shutil.copytree(MINI, folder)
    with Served("--host", "localhost", str(folder)) as server:
        assert pasted(server) == (folder.name, "A red circle.")
        port = httpx.URL(server.url).port
        for host in ("127.0.0.1", *(["[::1]"] if has_ipv6() else [])):
            assert httpx.get(f"http://{host}:{port}/health/ready", trust_env=False).status_code == 200
        server.close()


@IPV6
@pytest.mark.parametrize("host", ["[::1]", "::ffff:127.0.0.1"])
def test_an_address_of_ipv6_is_this_machine(host):
    with Served("--host", host) as server:
        assert pasted(server) == ("opsin-mini", "A red circle.")
        server.close()
