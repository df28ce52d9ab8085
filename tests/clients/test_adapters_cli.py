"""`opsin adapters` against a server, as a user runs it; within this process, where imports would cost seconds."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from opsin_client.adapters.problems import AdapterCommandError
from opsin_client.adapters.upload import Upload
from opsin_server.cli import app
from support import small_adapters
from support.served import OPSIN, Served, serving

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

FILES = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters that differ, by number; the server has them too, below --adapter-dir."""
    folder = tmp_path_factory.mktemp("adapters")
    for number in range(4):
        small_adapters.write(folder / str(number), number)
    small_adapters.write(folder / "large", 9, rank=128)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with serving("--adapter-dir", str(folder), "--max-loras", "4") as server:
        yield server


class Cli:
    def __init__(self, url: str) -> None:
        self.url = url

    def run(self, *words: str) -> Result:
        environment = {"COLUMNS": "300", "NO_COLOR": "1", "OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": None}
        return CliRunner().invoke(app, ["adapters", *words], env=environment)

    def __call__(self, *words: str) -> str:
        """What it prints."""
        done = self.run(*words)
        assert done.exit_code == 0, done.output
        assert done.stderr == ""
        return done.stdout

    def rows(self, *words: str) -> list[list[str]]:
        """Of a table, without its head."""
        return [line.split("\t") for line in self(*words).splitlines()[1:]]

    def refused(self, *words: str) -> str:
        """The one sentence that it leaves with."""
        done = self.run(*words)
        assert isinstance(done.exception, SystemExit), f"{done.exception!r}\n{done.output}"
        assert (done.exit_code, done.stdout) == (1, "")
        sentence = done.stderr.strip()
        assert sentence.startswith("opsin adapters: ")
        assert "\n" not in sentence, sentence
        return sentence.removeprefix("opsin adapters: ")


@pytest.fixture
def cli(server: Served) -> Cli:
    return Cli(f"{server.url}/v1")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses, with what names may hold."""
    return f"team/{request.node.name}"


def model(server: Served, name: str) -> str | None:
    """The version that answers for a model's name."""
    messages = [{"role": "user", "content": "Hi"}]
    raw = server.client().chat.completions.with_raw_response.create(model=name, messages=messages, max_tokens=1)
    return raw.headers.get("x-opsin-adapter-version")


def test_versions_come_and_go(cli, server, folder, name):
    """Loaded, promoted by each way of writing a version, rolled back, deleted; chats follow."""
    assert cli("load", name, str(folder / "0")) == f"{name}@v1 is the current version\n"
    assert cli("load", name, str(folder / "1"), "--no-promote") == f"{name}@v2 is loaded, not promoted\n"
    assert model(server, name) == f"{name}@v1"
    assert model(server, f"{name}@v2") == f"{name}@v2"
    for words, current in ((("2",), 2), (("v1",), 1), ((f"{name}@v2",), 2)):
        assert cli("promote", name, *words) == f"{name}@v{current} is the current version\n"
        assert model(server, name) == f"{name}@v{current}"
    assert cli("promote", f"{name}@v1") == f"{name}@v1 is the current version\n"
    assert cli("rollback", name) == f"{name}@v2 is the current version\n"
    assert cli.refused("unload", f"{name}@v2").startswith("version 2 of the adapter")
    assert cli("unload", name, "--version", "1") == f"{name}@v1 is deleted\n"
    assert cli("unload", name) == f"{name} is deleted\n"
    assert cli.refused("show", name) == f"There is no adapter '{name}'"


def test_what_is_listed_and_shown(cli, folder, name):
    cli("load", name, str(folder / "2"))
    cli("load", name, str(folder / "3"))
    (row,) = [row for row in cli.rows("list") if row[0] == name]
    assert row[:2] == [name, "v2"]
    assert row[3:5] == ["4", "language"]
    assert row[6:] == ["no", "never"]
    (entry,) = [entry for entry in json.loads(cli("list", "--json"))["data"] if entry["id"] == name]
    assert json.loads(cli("show", name, "--json")) == entry
    text = cli("show", name)
    assert f"{name}@v1\n" in text
    assert f"{name}@v2 (current)\n" in text
    assert DIGEST.findall(text) == [version["digest"] for version in entry["versions"]]


def test_a_table_on_a_terminal(server, folder, cli, name):
    """Brackets are no markup, and columns stand under each other."""
    cli("load", f"{name} [red]", str(folder / "0"))
    environment = server.room.environment(FORCE_COLOR="1", COLUMNS="200", OPENAI_BASE_URL=f"{server.url}/v1")
    del environment["NO_COLOR"]
    done = subprocess.run([OPSIN, "adapters", "list"], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
    (row,) = [row for row in rows if row.startswith(f"{name} [red]")]
    assert row.index("v1") == head.index("version")


def test_an_archive_and_a_directory_of_the_servers(cli, server, folder, tmp_path, name):
    with tarfile.open(tmp_path / "adapter.tar.gz", "w:gz") as archive:
        archive.add(folder / "0", "adapter")
    assert cli("load", name, str(tmp_path / "adapter.tar.gz")) == f"{name}@v1 is the current version\n"
    assert cli("load", name, "1", "--on-server") == f"{name}@v2 is the current version\n"
    assert model(server, name) == f"{name}@v2"


def test_what_the_server_notes_is_printed(cli, tmp_path, name):
    directory = small_adapters.write(tmp_path / "a", 5, base_model_name_or_path="/models/other")
    printed = cli("load", name, str(directory)).splitlines()
    assert printed == [
        f"{name}@v1 is the current version",
        "note: it was trained on '/models/other', by its configuration; this model is opsin-mini",
    ]


def test_another_base_takes_force(cli, tmp_path, name):
    directory = small_adapters.write(tmp_path / "a", 6)
    (directory / "opsin_adapter.json").write_text(json.dumps({"base": f"sha256:{'0' * 64}"}))
    assert "its answers would be wrong" in cli.refused("load", name, str(directory))
    assert "loaded by force" in cli("load", name, str(directory), "--force")


def test_pins(cli, folder, name):
    cli("load", name, str(folder / "0"))
    assert cli("pin", name) == f"{name} is pinned\n"
    assert [row[6] for row in cli.rows("list") if row[0] == name] == ["yes"]
    assert cli("pin", name, "--off") == f"{name} is not pinned\n"


def test_aliases(cli, server, folder, name):
    cli("load", name, str(folder / "0"))
    cli("load", name, str(folder / "1"))
    assert cli("alias", "gpt-4o-2024-08-06", name) == f"gpt-4o-2024-08-06 means {name}\n"
    assert cli("alias", "ft:gpt-4o:acme::abc", f"{name}@v1") == f"ft:gpt-4o:acme::abc means {name}@v1\n"
    assert cli("alias", "the base", "opsin-mini") == "the base means opsin-mini\n"
    assert [row[:2] for row in cli.rows("aliases")] == [
        ["ft:gpt-4o:acme::abc", f"{name}@v1"],
        ["gpt-4o-2024-08-06", name],
        ["the base", "opsin-mini"],
    ]
    assert model(server, "gpt-4o-2024-08-06") == f"{name}@v2"
    assert model(server, "ft:gpt-4o:acme::abc") == f"{name}@v1"
    assert model(server, "the base") is None
    assert "ft:gpt-4o:acme::abc" in cli.refused("unload", name)
    for alias in ("gpt-4o-2024-08-06", "ft:gpt-4o:acme::abc", "the base"):
        assert cli("alias", alias, "--delete") == f"{alias} is deleted\n"
    assert json.loads(cli("aliases", "--json"))["data"] == []


def test_a_download_is_what_was_loaded(cli, folder, tmp_path, name):
    """As an archive, which loads again, and as a directory; of any version."""
    cli("load", name, str(folder / "0"))
    cli("load", name, str(folder / "1"))
    archive, directory = tmp_path / "a.tar", tmp_path / "a"
    assert cli("download", name, str(archive)) == f"{archive}: {archive.stat().st_size:,} bytes\n"
    cli("download", f"{name}@v1", f"{directory}/")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        file: (folder / "0" / file).read_bytes() for file in FILES
    }
    cli("load", f"{name} again", str(archive))
    digests = [DIGEST.findall(cli("show", one))[-1] for one in (name, f"{name} again")]
    assert digests[0] == digests[1]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.tar"}


def test_a_download_replaces_nothing_unless_it_is_told_to(cli, folder, tmp_path, name):
    cli("load", name, str(folder / "0"))
    file, directory = tmp_path / "a.tar", tmp_path / "a"
    file.write_text("mine")
    directory.mkdir()
    (directory / "adapter_config.json").write_text("mine")
    for out in (f"{file}", f"{directory}/"):
        assert "--force" in cli.refused("download", name, out)
    assert (file.read_text(), (directory / "adapter_config.json").read_text()) == ("mine", "mine")
    assert f"write {directory}/" in cli.refused("download", name, str(directory))
    for out in (f"{file}", f"{directory}/"):
        cli("download", name, out, "--force")
    assert tarfile.is_tarfile(file)
    assert {path.name for path in directory.iterdir()} == FILES
    (directory / "thesis.tex").write_text("mine")
    assert "thesis.tex" in cli.refused("download", name, f"{directory}/", "--force")
    assert (directory / "thesis.tex").read_text() == "mine"


def test_an_upload_holds_an_adapters_files_and_nothing_else(folder, tmp_path):
    """Whole training directories are given; what lies beside the adapter does not leave the machine."""
    directory = small_adapters.write(tmp_path / "a", 0)
    for beside in ("optimizer.pt", "tokenizer.json", "README.md", "adapter_model.bin"):
        (directory / beside).write_text("beside")
    upload = Upload(directory, {"name": "n\u00e4me", "promote": "false"})
    body = b"".join(upload.chunks())
    assert upload.length == len(body)
    assert b"beside" not in body
    head, _, rest = body.partition(b'filename="adapter"\r\n\r\n')
    assert 'name="name"\r\n\r\nn\u00e4me\r\n'.encode() in head
    (tmp_path / "sent.tar").write_bytes(rest)
    with tarfile.open(tmp_path / "sent.tar") as archive:
        assert set(archive.getnames()) == FILES
        for name in FILES:
            file = archive.extractfile(name)
            assert file is not None
            assert file.read() == (directory / name).read_bytes()


def test_a_file_that_shrinks_is_not_sent_to_its_end(tmp_path):
    directory = small_adapters.write(tmp_path / "a", 0)
    upload = Upload(directory, {"name": "shrunk"})
    (directory / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(AdapterCommandError, match="became shorter while it was sent"):
        list(upload.chunks())


@pytest.mark.parametrize("pickle", ["adapter_model.bin", "non_lora_trainables.bin"])
def test_a_pickle_that_would_be_missed_is_named(cli, tmp_path, name, pickle):
    directory = small_adapters.write(tmp_path / "a", 0)
    if pickle == "adapter_model.bin":
        (directory / "adapter_model.safetensors").unlink()
    (directory / pickle).write_text("a pickle")
    assert f"{pickle} is a pickle" in cli.refused("load", name, str(directory))


def test_paths_that_are_no_adapter(cli, folder, tmp_path, name):
    assert cli.refused("load", name, str(tmp_path / "nowhere")) == f"{tmp_path}/nowhere: No such file or directory"
    assert "holds no adapter" in cli.refused("load", name, str(tmp_path))
    small_adapters.write(tmp_path / "checkpoint-100", 0)
    assert "(below it: checkpoint-100)" in cli.refused("load", name, str(tmp_path))
    assert "name its directory" in cli.refused("load", name, str(folder / "0" / "adapter_model.safetensors"))
    (tmp_path / "letter").write_text("Dear Sir or Madam")
    assert "the archive cannot be read" in cli.refused("load", name, str(tmp_path / "letter"))


REFUSED = [
    (("load", "a", "{folder}/large"), "rank 128 in 1 layers; the server takes up to 64 (--max-lora-rank)"),
    (("load", "a", "nowhere", "--on-server"), "there is no such directory"),
    (("load", "a", "../0", "--on-server"), "the path does not lie in the server's --adapter-dir"),
    (("load", "opsin-mini", "{folder}/0"), "'opsin-mini' is what the model itself is called here"),
    (("load", "a@v1", "{folder}/0"), "must not hold '@'"),
    (("load", "a\nb", "{folder}/0"), "the control character U+000A"),
    (("show", "nobody"), "There is no adapter 'nobody'"),
    (("promote", "nobody", "1"), "there is no adapter nobody"),
    (("rollback", "nobody"), "there is no adapter nobody"),
    (("pin", "nobody"), "there is no adapter nobody"),
    (("unload", "nobody"), "there is no adapter nobody"),
    (("alias", "a", "nobody"), "The model 'nobody' is not served here"),
    (("alias", "nobody", "--delete"), "nobody"),
    (("download", "nobody", "{tmp}/out"), "'nobody'"),
    (("download", "nobody", "{tmp}/no folder/out"), "No such directory"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_is_refused_is_one_sentence(cli, folder, tmp_path, words, sentence):
    assert sentence in cli.refused(*(word.format(folder=folder, tmp=tmp_path) for word in words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("promote", "a"), ("promote", "a", "x"), ("promote", "a@v1", "2"), ("alias", "a")])
def test_what_is_no_command_is_said_before_anything_is_asked(cli, words):
    assert cli.run(*words).exit_code == 2


@pytest.mark.parametrize("words", [("show", "\udcff"), ("load", "\udcff", "{folder}/0"), ("alias", "\udcff", "a")])
def test_names_that_are_no_text(cli, folder, words):
    assert "not UTF-8" in cli.refused(*(word.format(folder=folder) for word in words))


@pytest.mark.parametrize("url", ["http://[::1", "http://", "ftp://127.0.0.1", "http://127.0.0.1:9/v1"])
def test_nobody_at_the_url(url):
    assert url in Cli(url).refused("list")


def test_a_key_that_cannot_be_sent(cli):
    sentence = cli.refused("list", "--api-key", "correct horse")
    assert "OPENAI_API_KEY" in sentence
    assert "horse" not in sentence


def test_a_url_without_v1(server):
    assert Cli(server.url).rows("aliases") == []


class _Other(http.server.BaseHTTPRequestHandler):
    """Answers everything with the same; missing: bytes of it that never come."""

    answer: tuple[int, bytes]
    missing = 0

    def do_GET(self):
        status, body = self.answer
        self.send_response(status)
        self.send_header("content-length", str(len(body) + self.missing))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def others_port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def other(others_port: int) -> tuple[Cli, type[_Other]]:
    _Other.missing = 0
    return Cli(f"http://127.0.0.1:{others_port}/v1"), _Other


ALIEN = [
    (200, b"<html>Welcome</html>"),
    (200, b'{"object": "list", "data": [{"id": "gpt-4o"}]}'),
    (404, b'{"detail": "Not Found"}'),
    (404, b'{"error": {"message": "Unknown request URL", "code": "unknown_url"}}'),
    (307, b""),
    (500, b"\xff"),
]


@pytest.mark.parametrize("answer", ALIEN, ids=lambda answer: str(answer[0]))
@pytest.mark.parametrize("words", [("list",), ("show", "a"), ("load", "a", "{folder}/0"), ("download", "a", "{tmp}/o")])
def test_a_server_of_something_else(other, folder, tmp_path, answer, words):
    cli, handler = other
    handler.answer = answer
    if words[0] == "download" and answer[0] == 200:
        words = (*words[:2], "{tmp}/o/")
    sentence = cli.refused(*(word.format(folder=folder, tmp=tmp_path) for word in words))
    assert f"what answers at {cli.url} is no server that has adapters" in sentence or "no archive" in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(other, tmp_path):
    cli, handler = other
    handler.answer, handler.missing = (200, bytes(1024)), 1
    assert "closed the connection" in cli.refused("download", "a", str(tmp_path / "a.tar"))
    assert list(tmp_path.iterdir()) == []
