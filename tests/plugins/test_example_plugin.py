"""The example plugin, installed from its own wheel beside three plugins that are broken: it serves, they are named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from PIL import Image

from opsin_plugins.conformance.kit import named
from opsin_plugins.conformance.published import write
from opsin_plugins.conformance.subject import Subject
from opsin_plugins.loading.registry import Registry
from support import halves, oracle, words
from support.served import OPSIN, Served
from support.talk import user

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
PICTURE_TOKENS = 16
STRANGERS = {  # distribution -> the architecture that it claims, and its module
    "clashing": ("llava", "class Plugin:\n    api_version = 2\n    name = 'llava'\n"),
    "outdated": ("ancient", "class Plugin:\n    api_version = 0\n    name = 'ancient'\n"),
    "raising": ("bad", "raise RuntimeError('no such library')\n"),
}


def install_example(site: Path, tmp: Path) -> None:
    """What pip does with a wheel, without the network."""
    (wheel,) = WheelBuilder(str(EXAMPLE)).build(directory=str(tmp / "dist"), versions=["standard"])
    zipfile.ZipFile(wheel).extractall(site)


def install_stranger(site: Path, distribution: str, claim: str, source: str) -> None:
    (site / f"{distribution}.py").write_text(source)
    info = site / f"{distribution}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[opsin.architectures]\n{claim} = {distribution}:Plugin\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    install_example(site, tmp_path_factory.mktemp("build"))
    for distribution, (claim, source) in STRANGERS.items():
        install_stranger(site, distribution, claim, source)
    return site


@pytest.fixture(scope="module")
def model(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Glimpse with a tokenizer."""
    directory = tmp_path_factory.mktemp("glimpse")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        registry = Registry()
        subject = Subject("glimpse", named("glimpse", registry), registry, directory)
        write(directory, subject.example, subject.weights)
    words.write_tokenizer(directory, "llava")
    return directory


@pytest.fixture(scope="module")
def server(site: Path, model: Path) -> Iterator[Served]:
    served = Served(str(model), "--served-model-name", "tiny", "--max-context", "400", env=importing(site))
    try:
        yield served
        served.close()
    finally:
        served.discard()


def importing(site: Path) -> dict[str, str]:
    """The environment in which what lies there is installed as well."""
    return {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}


def opsin(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **importing(site), "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([OPSIN, *arguments], capture_output=True, text=True, env=environment, timeout=120)


def ask(server: Served, *parts: object) -> tuple[int, list[float]]:
    """Tokens of the prompt, and log-probabilities of four tokens of the answer."""
    answer = server.client().chat.completions.create(
        model="tiny", messages=[user(*parts)], max_tokens=4, temperature=0, logprobs=True
    )
    return answer.usage.prompt_tokens, [token.logprob for token in answer.choices[0].logprobs.content]


def test_a_server_answers_with_it(server: Served) -> None:
    pictures = [Image.fromarray(oracle.picture(seed, 40, 30)) for seed in range(2)]
    plain, _ = ask(server, "look")
    answers = [ask(server, picture, "look") for picture in pictures]
    assert [tokens - plain for tokens, _ in answers] == [PICTURE_TOKENS] * 2
    assert answers[0][1] != answers[1][1]
    again = ask(server, pictures[0], "look")
    assert again[0] == answers[0][0]
    assert again[1] == pytest.approx(answers[0][1], abs=1e-5)


def test_broken_plugins_are_named_and_stop_nothing(site: Path, server: Served) -> None:
    done = opsin(site, "plugins")
    assert done.returncode == 1
    rows = _rows(done.stdout)
    assert rows["glimpse", "opsin-glimpse"] == rows["mixer", "opsin-glimpse"] == "ok"
    assert rows["gated_scatter", "opsin-glimpse"] == rows["qwen2_vl", "opsin"] == "ok"
    both = "architecture 'llava' is claimed by 2 distributions: clashing, opsin; uninstall one"
    assert rows["llava", "opsin"] == rows["llava", "clashing"] == both
    assert rows["ancient", "outdated"] == (
        "architecture 'ancient' is written for api version 0; this is 2 (docs/plugins.md ends with what has changed)"
    )
    assert rows["bad", "raising"] == "architecture 'bad' failed to load: RuntimeError: no such library"
    assert server.is_ready()
    assert ask(server, "still there")[0] > 0


def _rows(table: str) -> dict[tuple[str, str], str]:
    """By name and distribution: "ok", or what is wrong, which stands below its row."""
    rows: dict[tuple[str, str], str] = {}
    last = ("", "")
    for line in table.splitlines():
        if line.startswith("    "):
            rows[last] = line.strip()
        else:
            _, name, distribution, _, status = re.split(r"\s{2,}", line)
            last = (name, distribution)
            rows[last] = status
    return rows


def test_the_kit_passes_it_and_names_the_clash(site: Path) -> None:
    done = opsin(site, "plugins", "check", "glimpse")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("glimpse\n  example         ok: model_type glimpse\n")
    assert "imports         ok: opsin_glimpse, opsin_glimpse.encoder, opsin_glimpse.family" in done.stdout
    assert "FAILED" not in done.stdout
    done = opsin(site, "plugins", "check", "llava")
    assert done.returncode == 1
    assert "loads           FAILED: architecture 'llava' is claimed by 2 distributions" in done.stdout


def test_a_name_or_all(site: Path) -> None:
    for arguments in ((), ("glimpse", "--all")):
        done = opsin(site, "plugins", "check", *arguments)
        assert done.returncode == 2
        assert "name one architecture, or say --all" in done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example without plugins that claim what others do."""
    site = tmp_path_factory.mktemp("alone")
    install_example(site, tmp_path_factory.mktemp("build-alone"))
    return site


@pytest.fixture(scope="module")
def composed(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of the example's encoder, about which neither the command nor the family knows anything."""
    folder = tmp_path_factory.mktemp("composed")
    (folder / "mixer").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(alone))
        registry = Registry()
        subject = Subject("glimpse", named("glimpse", registry), registry, folder)
        own = "model.vision."
        weights = {name.removeprefix(own): w for name, w in subject.weights.items() if name.startswith(own)}
        config = {**subject.example.config["vision_config"], "model_type": "mixer_vision_model"}
        write(folder / "mixer", replace(subject.example, config=config), weights)
    language = halves.language("llama", folder / "language").directory
    done = opsin(alone, "compose", "--vision", f"{folder / 'mixer'}", "--language", f"{language}", f"{folder / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "(mixer, features of layer 2)" in done.stdout
    assert f"{PICTURE_TOKENS} visual tokens" in done.stdout
    return folder / "out"


def test_its_encoder_composes_and_the_whole_answers(alone: Path, composed: Path) -> None:
    allowed = ("--plugins", "llava,mixer,scatter")
    served = Served(
        str(composed), "--served-model-name", "tiny", "--max-context", "400", *allowed, env=importing(alone)
    )
    try:
        plain, _ = ask(served, "look")
        answers = [ask(served, Image.fromarray(oracle.picture(seed, 40, 30)), "look") for seed in range(2)]
        served.close()
    finally:
        served.discard()
    assert [tokens - plain for tokens, _ in answers] == [PICTURE_TOKENS + 1] * 2  # (a newline ends a picture)
    assert answers[0][1] != answers[1][1]


def test_an_encoder_that_is_not_allowed_is_neither_used_nor_imported(composed: Path, tmp_path: Path) -> None:
    """Nor where it is not installed: both name the model_type."""
    site = tmp_path / "site"
    site.mkdir()
    install_example(site, tmp_path / "build")
    encoder = site / "opsin_glimpse" / "encoder.py"
    encoder.write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n" + encoder.read_text())
    done = opsin(site, "check", str(composed), "--plugins", "llava,scatter,clip")
    assert done.returncode == 1
    said = "no vision encoder plugin claims model_type 'mixer_vision_model'; claimed are clip_vision_model"
    assert f"{said} (--plugins allows clip, llava, scatter)" in done.stderr
    assert not (tmp_path / "imported").exists()
    done = opsin(tmp_path, "check", str(composed))
    assert said in done.stderr
    done = opsin(site, "check", str(composed))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "imported").exists()


def test_a_plugin_that_fails_is_named_where_no_encoder_is_found(composed: Path, tmp_path: Path) -> None:
    halves_ = ("--vision", str(composed.parent / "mixer"), "--language", str(composed.parent / "language"))
    install_example(tmp_path, tmp_path / "build")
    with (tmp_path / "opsin_glimpse" / "encoder.py").open("a") as module:
        module.write("\nraise RuntimeError('no such library')\n")
    done = opsin(tmp_path, "compose", *halves_, str(tmp_path / "out"))
    assert done.returncode == 1
    assert "model_type 'mixer_vision_model' is not taken; there are clip, clip_vision_model, siglip" in done.stderr
    assert "; vision encoder 'mixer' failed to load: RuntimeError: no such library" in done.stderr


def test_it_gives_its_last_layer_alone(alone: Path, composed: Path, tmp_path: Path) -> None:
    halves_ = ("--vision", str(composed.parent / "mixer"), "--language", str(composed.parent / "language"))
    done = opsin(alone, "compose", *halves_, "--vision-feature-layer", "-2", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "vision_feature_layer -2: mixer_vision_model gives the features of its last layer alone (-1)" in done.stderr
    assert not (tmp_path / "out").exists()


def test_its_own_tests_pass(site: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", str(EXAMPLE / "tests")],
        capture_output=True,
        text=True,
        env={**os.environ, **importing(site), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout


def test_it_stays_small() -> None:
    """What a family of its own costs; the tests do not count."""
    lines = sum(len(file.read_text().splitlines()) for file in (EXAMPLE / "opsin_glimpse").glob("*.py"))
    assert lines < 220


def test_the_document_shows_code_that_is_there() -> None:
    """Every block of Python, JSON and TOML in docs/plugins.md is a part of the example."""
    text = (EXAMPLE.parents[1] / "docs" / "plugins.md").read_text()
    sources = [f.read_text() for f in EXAMPLE.rglob("*") if f.suffix in (".py", ".toml", ".json")]
    blocks = text.split("```")[1::2]
    shown = [block.partition("\n")[2] for block in blocks if block.startswith(("python", "toml", "json"))]
    assert len(shown) >= 5
    for block in shown:
        assert any(block.strip("\n") in source for source in sources), block
