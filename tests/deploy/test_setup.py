"""deploy/setup.sh and the Makefile on machines that lack something. Nothing is downloaded: Python, df and NVIDIA's tool
are stand-ins that say what the test wants."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELL_SCRIPTS = ("deploy/setup.sh", "deploy/setup-clients.sh", "bench/gpu.sh", "bench/wheels.sh", ".ci/run")
TOOLS = ("sh", "dirname", "sed", "grep", "awk", "tail", "cat", "touch", "mkdir", "cp", "make", "echo", "readlink")
DEAD = "http://127.0.0.1:9/whl/cpu"  # nobody listens there

# Answers the script's questions; as .venv/bin/python also plays pip. What it was asked to do goes to $CALLS.
PYTHON = """#!/bin/sh
case "$*" in
*"< (3, 11)"*) [ "{minor}" -ge 11 ] ;;
*%d.%d.%d*) echo 3.{minor}.2 ;;
*%d.%d*) echo 3.{minor} ;;
*"import ensurepip"*) [ -z "$NO_VENV" ] ;;
"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo venv "$0" >>"$CALLS" ;;
"-m pip --version") ;;
"-m pip install"*)
    echo "$*" >>"$CALLS"
    if [ -n "$PIP_SAYS" ]; then echo "$PIP_SAYS"; exit 1; fi
    ;;
"- "*) exec "$REAL_PYTHON" "$@" ;;
esac
"""


class House:
    """A clone with the files of the set-up, on a machine whose PATH is this test's."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin = folder / "clone", folder / "bin"
        self.calls_file = folder / "calls"
        self.calls_file.touch()
        (self.root / "deploy").mkdir(parents=True)
        for name in ("deploy/setup.sh", "deploy/setup-clients.sh", "constraints.txt", "pyproject.toml", "Makefile"):
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)
        self.put("uname", "#!/bin/sh\necho Linux\n")
        self.disk(50)
        self.env = {
            "PATH": str(self.bin),
            "CALLS": str(self.calls_file),
            "REAL_PYTHON": sys.executable,
            "NVIDIA_DEVICE": str(folder / "no-such-device"),
            "TORCH_CPU_INDEX": "",
            "INDEX_SECONDS": "0.5",
        }

    def put(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def python(self, minor: int, name: str = "python3") -> None:
        self.put(name, PYTHON.replace("{minor}", str(minor)))

    def disk(self, gb: float) -> None:
        kib = int(gb * 1e6)
        self.put(
            "df", f'#!/bin/sh\necho "Filesystem 1024-blocks Used Available Capacity Mounted"\necho "x 9 9 {kib} 9% /"\n'
        )

    def nvidia(self) -> None:
        self.put("nvidia-smi", "#!/bin/sh\necho GPU 0\n")

    def setup(self, mode: str = "run", **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("sh", "deploy/setup.sh", mode, **env)

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.root, env=self.env | env, capture_output=True, text=True, timeout=30, check=False
        )

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    @property
    def pip_calls(self) -> list[str]:
        return [call for call in self.calls if call.startswith("-m pip install")]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a set-up that failed."""
    assert done.returncode != 0, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("setup: ")
    return lines[0]


def test_no_python(house: House) -> None:
    assert "no python3 here; install Python 3.11 or newer" in refusal(house.setup())
    assert not (house.root / ".venv").exists()


def test_an_old_python_is_named(house: House) -> None:
    house.python(9)
    assert "python3 is Python 3.9.2 and Opsin needs 3.11 or newer" in refusal(house.setup())
    assert house.calls == []


def test_a_linked_environment_is_not_emptied(house: House, tmp_path: Path) -> None:
    house.python(12)
    (tmp_path / "other").mkdir()
    (house.root / ".venv").symlink_to(tmp_path / "other")
    assert ".venv is a link to" in refusal(house.setup())
    assert house.calls == []


def test_a_newer_python_beside_an_old_one_is_taken(house: House) -> None:
    house.python(9)
    house.python(12, "python3.12")
    assert house.setup().returncode == 0
    assert house.calls[0] == f"venv {house.bin}/python3.12"


def test_the_python_that_was_asked_for(house: House) -> None:
    house.python(12)
    house.python(13, "mine")
    house.python(10, "old")
    assert "PYTHON=absent does not run" in refusal(house.setup(PYTHON="absent"))
    assert "PYTHON=old is Python 3.10.2" in refusal(house.setup(PYTHON="old"))
    assert house.setup(PYTHON="mine").returncode == 0
    assert house.calls[0] == f"venv {house.bin}/mine"


def test_a_python_without_venv_names_the_package(house: House) -> None:
    house.python(12)
    assert "apt install python3.12-venv" in refusal(house.setup(NO_VENV="1"))


@pytest.mark.parametrize(("mode", "gpu", "need"), [("run", False, 3), ("test", False, 4), ("run", True, 8)])
def test_too_little_disk(house: House, mode: str, gpu: bool, need: int) -> None:
    house.python(12)
    if gpu:
        house.nvidia()
    house.disk(need - 0.5)
    sentence = refusal(house.setup(mode))
    assert f"about {need} GB are needed" in sentence
    assert f"{need - 1}500 MB are free" in sentence
    house.disk(need)
    assert house.setup(mode).returncode == 0


@pytest.mark.parametrize(
    ("pip", "sentence"),
    [
        ("WARNING: Retrying after connection broken by 'NewConnectionError(...)'", "package index cannot be reached"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "the disk filled up"),
        ("ERROR: No matching distribution found for torch==9", "pip failed: ERROR: No matching distribution found"),
        ("Killed", "pip failed: no reason given (details: .venv/setup.log)"),
    ],
)
def test_a_pip_that_fails_is_explained(house: House, pip: str, sentence: str) -> None:
    house.python(12)
    assert sentence in refusal(house.setup(PIP_SAYS=pip))
    assert not (house.root / ".venv/.setup-run").exists()


def test_ci_sees_the_log_too(house: House) -> None:
    house.python(12)
    done = house.setup(PIP_SAYS="ERROR: odd", CI="true")
    assert done.returncode != 0
    assert done.stderr.splitlines() == ["ERROR: odd", "setup: pip failed: ERROR: odd (details: .venv/setup.log)."]


class Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/whl/cpu/torch/" else 404)
        self.end_headers()
        self.wfile.write(b"<html></html>")

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def index() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/whl/cpu"
        server.shutdown()


@pytest.fixture
def deaf_index() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/whl/cpu"


def test_the_cpu_index_comes_first(house: House, index: str) -> None:
    house.python(12)
    assert house.setup(TORCH_CPU_INDEX=index).returncode == 0
    torch, opsin = house.pip_calls
    assert torch.endswith(f"--no-deps --index-url {index} -c constraints.txt torch")
    assert opsin.endswith("-c constraints.txt -e .")


@pytest.mark.parametrize(
    ("which", "why"), [("deaf", "nothing within 0.5 s"), ("dead", "Connection refused"), ("wrong", "Not Found")]
)
def test_an_index_without_answer_is_given_up(house: House, index: str, deaf_index: str, which: str, why: str) -> None:
    house.python(12)
    done = house.setup(TORCH_CPU_INDEX={"deaf": deaf_index, "dead": DEAD, "wrong": f"{index}/x"}[which])
    assert done.returncode == 0
    assert why in done.stdout
    assert "pip's default torch" in done.stdout
    torch, _ = house.pip_calls
    assert "--index-url" not in torch
    assert torch.endswith("-c constraints.txt torch")


@pytest.mark.parametrize("case", ["nvidia", "switched off", "mac"])
def test_the_cpu_index_is_not_asked(house: House, index: str, case: str) -> None:
    house.python(12)
    if case == "nvidia":
        house.nvidia()
    if case == "mac":
        house.put("uname", "#!/bin/sh\necho Darwin\n")
    assert house.setup(TORCH_CPU_INDEX="" if case == "switched off" else index).returncode == 0
    assert len(house.pip_calls) == 1


def test_torch_that_is_there_is_kept(house: House) -> None:
    house.python(12)
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    (house.root / f".venv/lib/python3.12/site-packages/torch-{pinned.removeprefix('torch==')}+cpu.dist-info").mkdir(
        parents=True
    )
    house.disk(1.5)  # enough without torch
    assert house.setup(TORCH_CPU_INDEX=DEAD).returncode == 0
    assert len(house.pip_calls) == 1


def test_make_sets_up_once(house: House) -> None:
    house.python(12)
    assert house.run("make", "setup").returncode == 0
    count = len(house.calls)
    again = house.run("make", "setup")
    assert (again.returncode, again.stdout, len(house.calls)) == (0, "", count)
    assert house.run("make", "setup-test").returncode == 0
    assert house.calls[-1].endswith("-e .[test]")
    count = len(house.calls)
    assert house.run("make", "setup").returncode == house.run("make", "setup-test").returncode == 0
    assert len(house.calls) == count
    pyproject = house.root / "pyproject.toml"
    later = (house.root / ".venv/.setup-run").stat().st_mtime + 10
    os.utime(pyproject, (later, later))
    assert house.run("make", "setup").returncode == 0
    assert len(house.calls) > count


def test_a_venv_that_was_copied_here_is_made_anew(house: House, tmp_path: Path) -> None:
    house.python(12)
    assert house.run("make", "setup").returncode == 0
    copy = tmp_path / "copy"
    shutil.copytree(house.root, copy)
    house.calls_file.write_text("")
    house.root = copy
    assert house.run("make", "setup").returncode == 0
    assert house.calls[0].startswith("venv ")
    assert (copy / ".venv/.where").read_text().strip() == str(copy)


def test_make_says_what_it_can_do(house: House) -> None:
    assert "make serve" in house.run("make").stdout


def test_clients_say_what_is_missing(house: House) -> None:
    assert "no .venv here; make setup-test" in refusal(house.run("sh", "deploy/setup-clients.sh"))
    house.python(12)
    assert house.setup("test").returncode == 0
    assert "no node here; install Node.js 20" in refusal(house.run("sh", "deploy/setup-clients.sh"))
    house.put("node", "#!/bin/sh\necho v18.2.0\n")
    assert "node is v18.2.0 and the clients need 20" in refusal(house.run("sh", "deploy/setup-clients.sh"))
    house.put("node", "#!/bin/sh\necho v20.2.0\n")
    house.put("npm", "#!/bin/sh\n")
    house.put("id", "#!/bin/sh\necho 1000\n")
    assert "no chromium here; install it" in refusal(house.run("sh", "deploy/setup-clients.sh"))


def test_shellcheck() -> None:
    tool, scripts = Path(sys.executable).with_name("shellcheck"), SHELL_SCRIPTS
    done = subprocess.run([tool, *scripts], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_ci_runs_make_test_and_the_clients() -> None:
    assert (ROOT / ".ci/run").read_text().splitlines()[-2:] == ["make test", "exec make test-clients"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
