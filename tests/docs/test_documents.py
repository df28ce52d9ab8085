"""The documents speak of what is there: links and files exist, and what the code has is in the references."""

from __future__ import annotations

import ast
import os
import re
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from opsin_server.cli import SERVE
from opsin_server.metrics import Metrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("kernels/opsin_kernels", "plugins/opsin_plugins", "server/opsin_server", "clients/opsin_client")
NOT_OURS = {".git", ".venv", ".venv-clients", ".hypothesis", "build", "dist", "node_modules", "__pycache__", "shared"}

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?<![\w*<./-])[\w.-]+(?:/[\w.-]+)*\.(?:py|md|sh|toml)(?![\w(/])")
CITED = re.compile(r"\b([A-Z]{5,})(?:\.md)?, ?(?:section |§ ?)?\d+(?:\.\d+)*\b")
WORDS = (tokenize.STRING, tokenize.COMMENT)
VARIABLE = re.compile(r"(?:OPSIN|OPENAI|OMP|TRITON|XDG)_[A-Z_]+|TMPDIR")


def files() -> Iterator[Path]:
    """Everything that a clone holds, and what a build has left beside it."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = filter(ours, folders)  # (`.venv` has more files than all the rest, and is not entered)
        yield from (Path(folder, name) for name in filter(ours, names))


def ours(name: str) -> bool:
    return name not in NOT_OURS and not name.endswith((".dist-info", "_cache"))


FILES = sorted(path for path in files() if path.is_file())
NAMES = ["/" + str(path.relative_to(ROOT)) for path in FILES]
DOCUMENTS = [path for path in FILES if path.suffix == ".md"]
SOURCES = [ROOT / name[1:] for name in NAMES if name.endswith(".py") and name[1:].startswith(PACKAGES)]


def anchors(text: str) -> set[str]:
    """GitHub's, of a document's headings."""
    titles = re.findall(r"^#+ +(.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_lead_somewhere_inside_the_repository(document: Path):
    text = document.read_text("utf-8")
    for link in (a or b for a, b in LINK.findall(FENCE.sub("", text))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), f"{link}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_files_that_a_document_names_exist(document: Path):
    text = FENCE.sub("", document.read_text("utf-8"))
    beside = ["/" + relative(path) for path in FILES if path.is_relative_to(document.parent)]
    for name in (name for code in CODE.findall(text) for name in FILE.findall(code)):
        if "NAME" in name:  # one that is yet to be written
            continue
        assert any(known.endswith("/" + name) for known in [*NAMES, *beside]), f"{name} does not exist"


def said(path: Path) -> list[str]:
    """A document's text; of a module its comments and strings."""
    if path.suffix != ".py":
        return [path.read_text("utf-8", errors="ignore")]
    with tokenize.open(path) as file:
        return [token.string for token in tokenize.generate_tokens(file.readline) if token.type in WORDS]


def test_comments_and_docstrings_name_files_that_exist():
    for path in SOURCES:
        for name in (name for text in said(path) for name in FILE.findall(text)):
            assert any(known.endswith("/" + name) for known in NAMES), f"{relative(path)} speaks of {name}"


def test_what_is_cited_by_section_is_in_the_repository():
    """A paper in capitals, with a number of a section behind it, is a document that a reader of the clone looks for."""
    for path in FILES:
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".sh", ""):
            for name in (name for text in said(path) for name in CITED.findall(text)):
                assert f"/docs/{name}.md" in NAMES or f"/{name}.md" in NAMES, f"{relative(path)} cites {name}"


def test_the_tree_in_architecture_is_the_servers():
    """Both ways: each module stands in the table of its folder, and each name there is a module."""
    text = (DOCS / "architecture.md").read_text("utf-8")
    table = text.partition("`server/opsin_server`, by folder:")[2].partition("\nThe other packages:")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("|")]
    named = {
        f"{folder.strip(' `')}{name}.py"
        for folder, names in rows
        for name in CODE.findall(names)
        if name.isidentifier()
    }
    server = ROOT / "server/opsin_server"
    modules = {str(path.relative_to(server)) for path in SOURCES if path.is_relative_to(server)}
    assert named == {name for name in modules if not Path(name).name.startswith("__")}


def test_architecture_goes_the_whole_way_of_a_chat():
    """Of the API process and the engine: what is in the tree is met on the way, at a start or when things go wrong."""
    text = (DOCS / "architecture.md").read_text("utf-8").partition("## The tree")[0]
    server = ROOT / "server/opsin_server"
    for path in SOURCES:
        if path.is_relative_to(server) and not path.name.startswith("__"):
            name = str(path.relative_to(server))
            others = (
                "compose/",
                "merge/",
                "quantize/",
                "atomic_directory.py",
                "copy_files.py",
                "api/reference/",
            )
            if not name.startswith(others):
                assert f"`{name}`" in text, name


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """The reference's tables: what each row's first cell has as code, and the second cell."""
    text = FENCE.sub("", (DOCS / "reference.md").read_text("utf-8"))
    cells = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("|")]
    return {code: second.strip() for first, second in cells for code in CODE.findall(first)}


def test_every_option_is_in_the_reference(reference: dict[str, str]):
    flags = {f"--{field.name}": field for field in SERVE}
    given = {code for code in reference if code.startswith("--")} - {
        "--no-prefix-cache",
        "--no-lora-projectors",
        "--no-playground",
    }
    assert given == {*flags, "--config"}
    for flag, field in flags.items():
        default = f"{field.default // 2**20}MiB" if field.metavar == "SIZE" and field.default else field.default
        if isinstance(default, str | int | float) and not isinstance(default, bool) and default != "":
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            assert reference[flag] == f"`{shown}`", flag


def test_every_metric_is_in_the_reference(reference: dict[str, str]):
    metrics = Metrics()
    metrics.watch(dict, lambda: 0, "model")
    metrics.adapters.watch(lambda: 0, lambda: (0, 0))
    metrics.jobs.watch(dict)
    metrics.batches.watch(dict)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)", metrics.text().decode(), re.MULTILINE))
    kinds = {name: kind for name, kind in kinds.items() if not name.endswith("_created")}
    assert kinds == {code: kind for code, kind in reference.items() if re.fullmatch(r"(opsin_|vllm:)[a-z_]+", code)}


def test_every_variable_of_the_environment_is_in_the_reference(reference: dict[str, str]):
    read = {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and VARIABLE.fullmatch(node.value)
    }
    assert {"OPSIN_API_KEY", "OPSIN_KERNELS", "OPENAI_BASE_URL"} <= read
    assert read - {"OMP_NUM_THREADS"} <= reference.keys()  # (which is set, and not read)
    assert {code for code in reference if code.startswith("OPSIN_")} <= read


def test_every_error_code_is_in_the_reference():
    rows = re.findall(r"^\| (\d{3}) \| `\w+` \| `(\w+)` \|", (DOCS / "reference.md").read_text("utf-8"), re.MULTILINE)
    assert {code for _, code in rows} == {code for path in SOURCES for code in error_codes(path)}


def test_what_plugins_may_rely_on_is_there():
    table = (DOCS / "plugins.md").read_text("utf-8").partition("## What is stable")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", table, re.MULTILINE)
    assert len(rows) > 5
    for module, names in rows:
        for name in CODE.findall(names):
            assert hasattr(import_module(module), name), f"{module} has no {name}"


def error_codes(path: Path) -> Iterator[str]:
    """Of the server: given as an argument, set by an exception's class, or a constant of that name."""
    if "opsin_server" not in path.parts or "engine" in path.parts:
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            if isinstance(node.func, ast.Name) and node.func.id == "_shaped":
                values += node.args[2:]
        elif isinstance(node, ast.Assign) and {getattr(name, "id", "") for name in node.targets} & {
            "code",
            "UNSUPPORTED",
        }:
            values = [node.value]
        for value in values:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value
