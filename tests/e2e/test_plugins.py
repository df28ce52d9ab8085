"""A server says which plugins it knows not to load, and runs none that its model does not need."""

from __future__ import annotations

import os
from pathlib import Path

from support.served import Process, Served

POINTS = {
    "opsin-lost": "lost = lost_module:Lost",
    "opsin-one": "twice = stranger:Stranger",
    "opsin-two": "twice = stranger:Stranger",
    "opsin-other": "other = stranger:Stranger",
}
STRANGER = """
from pathlib import Path

Path(__file__).with_name("imported").touch()
raise RuntimeError("no such library")
"""


def site(folder: Path) -> str:
    """Distributions with plugins, as an installer leaves them."""
    for name, point in POINTS.items():
        info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[opsin.architectures]\n{point}\n")
    (folder / "stranger.py").write_text(STRANGER)
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def test_broken_plugins_are_lines_in_the_log_and_nothing_of_them_runs(tmp_path: Path):
    with Served(env={"PYTHONPATH": site(tmp_path)}) as server:
        warnings = [line for line in server.stderr.splitlines() if line.startswith("WARNING")]
        assert [line.partition(" architecture ")[2] for line in warnings] == [
            "'lost' of opsin-lost failed to load: there is no module 'lost_module'",
            "'twice' is claimed by 2 distributions: opsin-one, opsin-two; uninstall one",
        ]
        assert not (tmp_path / "imported").exists()
        server.close()


def test_a_model_of_a_broken_plugin_is_one_sentence_that_names_it(tmp_path: Path):
    path, model = site(tmp_path), tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "other"}')
    (model / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with Process("serve", "--port", "0", str(model), env={"PYTHONPATH": path}) as process:
        assert process.wait() == 1
        (sentence,) = process.stderr.splitlines()
        assert sentence == "opsin: architecture 'other' failed to load: RuntimeError: no such library"
