"""Measures the house: sizes, cycles, names, and the files that one chat request crosses in both processes.

python bench/structure.py [--root OTHER_CHECKOUT] [--no-chat]
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import tokenize
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from processes import free_port

PACKAGES = {
    "opsin_kernels": "kernels",
    "opsin_plugins": "plugins",
    "opsin_server": "server",
    "opsin_client": "clients",
}
SHORT = 40  # lines of code below which a file must earn its room
# Put on the server's path: writes down which of our files run while the flag is there.
TRACE = """
import os, sys, threading
FLAG, OUT, PACKAGES = os.environ["TRACE_FLAG"], os.environ["TRACE_OUT"], {packages!r}
seen = set()
def note(frame, event, argument):
    if event == "call":
        name = frame.f_code.co_filename
        if name not in seen and any("/" + package + "/" in name for package in PACKAGES) and os.path.exists(FLAG):
            seen.add(name)
            with open(os.path.join(OUT, str(os.getpid())), "a") as file:
                file.write(name + "\\n")
threading.setprofile(note)
sys.setprofile(note)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--no-chat", action="store_true")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    files = {path: path.read_text("utf-8") for path in sources(root)}
    lines = {path: code_lines(path) for path in files}
    for package, folder in PACKAGES.items():
        print(f"{package:14} {sum(n for p, n in lines.items() if (root / folder) in p.parents):6,} lines of code")
    largest = max(files, key=lambda path: len(files[path].splitlines()))
    print(f"largest file   {len(files[largest].splitlines()):6,} lines: {largest.relative_to(root)}")
    for title, gpu in (("function", False), ("kernel", True)):
        length, where = longest((p for p in files if ("gpu" in p.parts) is gpu), files)
        print(f"longest {title:8}{length:5,} lines: {where}")
    graph = imports(root, files)
    homes = {name: room(name, graph) for name in graph}
    rooms: dict[str, set[str]] = {}
    for module, targets in graph.items():
        rooms.setdefault(homes[module], set()).update(homes[target] for target in targets)
    print(f"module cycles  {report(cycles(graph))}")
    print(f"folder cycles  {report(cycles({name: {t for t in to if t != name} for name, to in rooms.items()}))}")
    short = [p for p, n in lines.items() if n < SHORT and p.name not in ("__init__.py", "__main__.py")]
    print(f"under {SHORT} lines {len(short):6}: {', '.join(sorted(str(p.relative_to(root)) for p in short))}")
    names = Counter(p.name for p in files if not p.name.startswith("__"))
    print(f"shared names   {', '.join(sorted(f'{n} ({c})' for n, c in names.items() if c > 1))}")
    if not arguments.no_chat:
        for process, crossed in chat(root).items():
            print(f"a chat crosses {len(crossed):6} files of the {process}: {', '.join(crossed)}")


def sources(root: Path) -> Iterator[Path]:
    for package, folder in PACKAGES.items():
        yield from sorted((root / folder / package).rglob("*.py"))


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
    found: set[int] = set()
    with tokenize.open(path) as file:
        start = True
        for token in tokenize.generate_tokens(file.readline):
            docstring = token.type == tokenize.STRING and start
            if token.type not in (*skip, tokenize.ENDMARKER) and not docstring:
                found.update(range(token.start[0], token.end[0] + 1))
            if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
                start = True
            elif token.type not in skip:
                start = False
    return len(found)


def longest(paths: Iterable[Path], files: Mapping[Path, str]) -> tuple[int, str]:
    best = (0, "")
    for path in paths:
        for node in ast.walk(ast.parse(files[path])):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                best = max(best, ((node.end_lineno or 0) - node.lineno + 1, f"{path.name}:{node.name}"))
    return best


def module_of(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path, files: Mapping[Path, str]) -> dict[str, set[str]]:
    """Each module's imports of others of ours, at whatever place they stand."""
    modules = {module_of(root, path): path for path in files}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(files[path])):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {n if n in modules else node.module for n in inner}
        graph[name] = {n for n in found if n in modules and n != name}
    return graph


def room(module: str, modules: Iterable[str]) -> str:
    """Its folder; the module itself, where its folder has folders of its own."""
    folder = module.rpartition(".")[0] or module
    inner = [name for name in modules if name.startswith(folder + ".") and name.count(".") > folder.count(".") + 1]
    return module if inner else folder


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected parts of more than one. Source: Tarjan 1972."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[-len(part) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def report(found: list[list[str]]) -> str:
    return f"{len(found):6}{': ' if found else ''}{'; '.join(' <-> '.join(part) for part in found)}"


def chat(root: Path) -> dict[str, list[str]]:
    """The files of each process that run between a request's first byte and the end of its answer."""
    with tempfile.TemporaryDirectory() as folder:
        out, flag = Path(folder) / "out", Path(folder) / "flag"
        out.mkdir()
        (Path(folder) / "sitecustomize.py").write_text(TRACE.format(packages=list(PACKAGES)))
        paths = [folder, *(str(root / name) for name in PACKAGES.values())]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "TRACE_FLAG": str(flag), "TRACE_OUT": str(out)}
        port = free_port()
        command = [sys.executable, "-m", "opsin_server", "serve"]
        if not (root / "server/opsin_server/__main__.py").exists():
            command = [sys.executable, "-c", "from opsin_server.cli import main; main()", "serve"]
        server = subprocess.Popen(
            [*command, "--port", str(port), "--ephemeral"], env={**os.environ, **environment}, stderr=subprocess.DEVNULL
        )
        try:
            ask(port, "cat")  # what the first request alone imports is no part of a request's way
            flag.touch()
            ask(port, "red_circle")  # a picture that is not known yet
            flag.unlink()
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        found = {}
        for record in out.iterdir():
            crossed = sorted({str(Path(name).relative_to(root)) for name in record.read_text().split("\n") if name})
            found["API process" if int(record.name) == server.pid else "engine process"] = crossed
        return found


def ask(port: int, name: str) -> None:
    picture = Path(__file__).parents[1] / f"server/opsin_server/models/samples/{name}.png"
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is in the picture?"}]
    body = {"model": "opsin-mini", "stream": True, "messages": [{"role": "user", "content": content}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine is asked without a proxy
    for _ in range(300):
        try:
            with opener.open(request) as answer:
                answer.read()
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server did not answer")


if __name__ == "__main__":
    main()
