"""`opsin chat`, `opsin plugins` and `opsin doctor`: as a user runs them, and what goes wrong within this process, where
it does not cost seconds of imports."""

from __future__ import annotations

import http.server
import subprocess
import threading
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from opsin_server.cli import app
from support.served import OPSIN, Room, Served
from support.talk import SAMPLES

CIRCLE, CAT, ROCKET = (str(SAMPLES / name) for name in ("red_circle.png", "cat.png", "rocket.png"))
ABOUT = "opsin-mini is a demonstration model for drawings, emoji, digits and letters, not for photographs."


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.remove()


@pytest.fixture
def opsin(room):
    def run(*words: str, typed: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [OPSIN, *words],
            input=typed,
            stdin=subprocess.DEVNULL if typed is None else None,
            capture_output=True,
            text=True,
            cwd=room.work,
            env=room.environment(**env),
            timeout=120,
        )

    return run


@pytest.fixture
def chat(opsin, served: Served):
    return lambda *words, **options: opsin("chat", "--url", f"{served.url}/v1", *words, **options)


@pytest.fixture
def refused(served: Served):
    """Runs `opsin chat` here, and returns the one sentence that it leaves with."""

    def refused(*words: str, url: str | None = None) -> str:
        environment = {"COLUMNS": "300", "NO_COLOR": "1", "NO_PROXY": "*"}
        arguments = ["chat", "--url", url or f"{served.url}/v1", *words]
        done = CliRunner().invoke(app, arguments, env=environment)
        assert isinstance(done.exception, SystemExit), f"{done.exception!r}\n{done.output}"
        assert done.exit_code == 1
        assert without_about(done.stdout) == ""
        sentence = without_about(done.stderr)
        assert sentence.startswith("opsin chat: ")
        assert "\n" not in sentence, sentence
        return sentence

    return refused


def without_about(text: str) -> str:
    return text.replace(ABOUT, "").strip()


def test_a_question_about_a_picture_prints_the_answer_alone(chat):
    """On standard output nothing else, so that it can be piped; what the model is stands on standard error."""
    done = chat("--image", CIRCLE, "What is in the picture?")
    assert (done.returncode, done.stdout) == (0, "A red circle.\n"), done
    assert ABOUT in done.stderr


def test_two_pictures_and_a_server_from_the_environment(opsin, served):
    words = ("--image", CAT, "--image", ROCKET, "--max-tokens", "8", "Which image has a rocket?")
    done = opsin("chat", *words, OPENAI_BASE_URL=f"{served.url}/v1")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Second")


def test_variables_that_come_from_files_end_with_a_line_end(opsin, served):
    given = {"OPENAI_BASE_URL": f"{served.url}/v1\n", "OPENAI_API_KEY": "any-key\r\n"}
    done = opsin("chat", "--image", CIRCLE, "What is in the picture?", **given)
    assert (done.returncode, done.stdout) == (0, "A red circle.\n"), done


@pytest.mark.parametrize("key", ["correct horse", "horse\nHost: x", "h\u00f6rse", "\ufeffhorse"])
def test_a_key_that_cannot_be_sent(refused, key):
    sentence = refused("--api-key", key, "Hello")
    assert "OPENAI_API_KEY" in sentence
    assert "rse" not in sentence


def test_a_conversation_goes_on_until_its_input_ends(chat):
    """The picture is sent with the first question and stays in the conversation."""
    done = chat("--image", CAT, typed="What is this?\nIs this a dog?\n")
    assert done.returncode == 0, done.stderr
    answers = [line.removeprefix("> ") for line in done.stdout.splitlines()]
    assert [line for line in answers if line in ("A cat.", "No")] == ["A cat.", "No"], done.stdout


def test_nobody_at_the_url(opsin):
    done = opsin("chat", "--url", "http://127.0.0.1:9/v1", "Hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "opsin chat: no server answers at http://127.0.0.1:9/v1 (start one: opsin serve; one elsewhere: --url)\n"
    )


@pytest.mark.parametrize("url", ["not a url", "localhost:8000", "http://", "ftp://127.0.0.1/v1", "http://[::1"])
def test_a_url_that_is_none(refused, url):
    assert url in refused("Hello", url=url)


@pytest.mark.parametrize("name", ["no such file.png", "[red].png", "[/no].png"])
def test_a_picture_that_is_not_there(refused, name):
    assert name in refused("--image", name, "What is this?")


def test_a_picture_that_is_a_folder(refused, tmp_path):
    assert str(tmp_path) in refused("--image", str(tmp_path), "What is this?")


@pytest.mark.parametrize("name", ["letter.png", "letter.txt", "letter"])
def test_a_file_that_is_no_picture(refused, tmp_path, name):
    (tmp_path / name).write_text("Dear Sir or Madam")
    assert "image" in refused("--image", str(tmp_path / name), "What is this?")


def test_a_model_that_is_not_served(refused):
    sentence = refused("--model", "gpt-4o", "Hello")
    assert "gpt-4o" in sentence
    assert "opsin-mini" in sentence


def test_a_question_that_does_not_fit(refused):
    assert "1024 tokens" in refused("What is this? " * 2000)


@pytest.mark.parametrize("words", [("Hello",), ("--model", "any", "Hello")])
def test_a_server_of_something_else(refused, words):
    """What answers is a web site."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _WebSite)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert refused(*words, url=f"http://127.0.0.1:{server.server_port}/v1")
    finally:
        server.shutdown()
        server.server_close()


def test_an_answer_that_breaks_off():
    """What came is shown, and that it is not all."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Breaking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        done = CliRunner().invoke(app, ["chat", "--url", url, "--model", "any", "Hello"], env={"COLUMNS": "300"})
    finally:
        server.shutdown()
        server.server_close()
    assert (done.exit_code, done.stdout) == (1, "Half\n")
    assert done.stderr == f"opsin chat: the answer broke off: {url} closed the connection\n"


class _Breaking(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        data = b'data: {"id": "1", "choices": [{"index": 0, "delta": {"content": "Half"}}]}\n\n'
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.close_connection = True

    def log_message(self, *_):
        pass


class _WebSite(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html><body>Welcome</body></html>")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


def test_plugins_lists_what_is_there(opsin):
    done = opsin("plugins")
    assert done.returncode == 0, done.stderr
    for word in ("kind", "name", "distribution", "version", "status"):
        assert word in done.stdout
    for row in (("architecture", "qwen2_vl"), ("architecture", "llava"), ("encoder", "clip"), ("fusion", "scatter")):
        assert any(all(word in line for word in (*row, "opsin", "ok")) for line in done.stdout.splitlines()), row


def test_plugins_of_an_allow_list(opsin):
    done = opsin("plugins", "--plugins", "qwen2_vl,scatter")
    assert done.returncode == 0, done.stderr
    assert "qwen2_vl" in done.stdout
    assert "llava" not in done.stdout


def test_doctor_says_what_this_machine_has(opsin, room):
    done = opsin("doctor")
    assert done.returncode == 0, done.stdout
    for word in ("Python", "torch", "triton", "device", "kernels", "memory"):
        assert word in done.stdout
    assert room.left() == []


def test_the_commands_explain_themselves(opsin):
    assert {"serve", "chat", "plugins", "doctor"} <= set(opsin("--help").stdout.split())
    assert opsin("serve", "--no-such-flag").returncode == 2
