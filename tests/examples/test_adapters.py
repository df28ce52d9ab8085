"""The adapters that ship in examples/adapters: what they make opsin-mini say, through the engine, and their script."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import plain_drawings
import pytest
from PIL import Image

from opsin_plugins.spec import ImageBudget
from opsin_server.adapters.base_model import BaseModel
from opsin_server.config import EngineConfig
from opsin_server.embedded import MODEL, SAMPLES
from opsin_server.ipc.messages import AdapterRef
from opsin_server.text.conversation import ImagePart, Message, TextPart
from opsin_server.text.detokenizer import Detokenizer
from opsin_server.text.encode_prompt import PromptEncoder, read_encoder
from support import engines, oracle, peft
from support.oracle import Ours

ADAPTERS = Path(__file__).parents[2] / "examples/adapters"
NAMES = ("german", "fields")
MAX_BYTES = 400_000


def script() -> ModuleType:
    """examples/adapters/train.py; there is another script of this name, in examples/mini."""
    found = spec_from_file_location("train_adapters", ADAPTERS / "train.py")
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


train = script()


class Mini:
    """The embedded model and both adapters, in one engine."""

    def __init__(self, folder: Path) -> None:
        self.ours: Ours = oracle.load(MODEL)
        self.encoder: PromptEncoder = read_encoder(EngineConfig(str(MODEL), device="cpu"))
        self.base: BaseModel = peft.base_of(MODEL)
        self.refs: Mapping[str, AdapterRef | None] = {
            "opsin-mini": None,
            **{name: self.converted(ADAPTERS / name, folder / f"{name}.safetensors") for name in NAMES},
        }

    def converted(self, adapter: Path, file: Path) -> AdapterRef:
        peft.converted(adapter, self.base).write(file)
        return AdapterRef(hashlib.sha256(file.read_bytes()).digest(), str(file))

    def ask(self, question: str, image: Image.Image) -> dict[str, str]:
        """What each says, all in one batch."""
        picture = np.asarray(image.convert("RGB"))
        parts = (ImagePart("", ImageBudget(), ""), TextPart(question))
        asked = engines.Asked(self.encoder.text_ids([Message("user", parts)]), [picture], count=80)
        engine = engines.make_engine(self.ours, adapter_slots=len(NAMES))
        for name, ref in self.refs.items():
            engines.submit(engine, self.ours, name, asked, eos=self.encoder.ends, adapter=ref)
        answers: dict[str, engines.Answer] = {}
        while engine.sequences:
            while not engine.busy:  # adapters are read
                time.sleep(0.001)
            engines.collect(engine.step(), answers)
        return {name: self._text(answer) for name, answer in answers.items()}

    def _text(self, answer: engines.Answer) -> str:
        assert answer.finish == "stop", answer
        reader = Detokenizer(self.encoder.tokenizer)
        return reader.push([one for one in answer.tokens if one not in self.encoder.ends]) + reader.finish()


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return Mini(tmp_path_factory.mktemp("adapters"))


def documented() -> list[tuple[str, str, dict[str, str]]]:
    """The README's table: a picture, a question, and what each says."""
    text = (ADAPTERS / "README.md").read_text("utf-8")
    rows = re.findall(r"^\|`(\S+\.png)`\|(.+?)\|(.+?)\|(.+?)\|(.+?)\|$", text, re.MULTILINE)
    names = ("opsin-mini", *NAMES)
    return [(file, asked, dict(zip(names, map(_text, said), strict=True))) for file, asked, *said in rows]


def _text(cell: str) -> str:
    return cell.replace("`<br>`", "\n").strip("`")


@pytest.mark.parametrize(("file", "question", "said"), documented(), ids=lambda value: str(value)[:40])
def test_they_say_what_the_readme_says(file: str, question: str, said: dict[str, str], mini: Mini) -> None:
    assert mini.ask(question, Image.open(SAMPLES / file)) == said


def test_the_table_shows_every_adapter_in_its_own_way() -> None:
    rows = documented()
    assert len(rows) >= 3
    assert all(any(said[name] != said["opsin-mini"] for _, _, said in rows) for name in NAMES)


def test_drawings_that_nobody_has_seen(mini: Mini) -> None:
    right, asked = dict.fromkeys(NAMES, 0), 0
    for drawing, questions in plain_drawings.exam(8, 31, plain_drawings.OWN):
        question = questions[0]
        said = mini.ask(question.text, drawing.image)
        asked += 1
        for name in NAMES:
            right[name] += said[name] == train.ADAPTERS[name](question.kind, question.answer, drawing.shapes)
    assert min(right.values()) >= 0.75 * asked, right


@pytest.mark.parametrize("name", NAMES)
def test_they_are_small_and_name_no_path(name: str) -> None:
    files = {path.name: path for path in (ADAPTERS / name).iterdir()}
    assert files.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert sum(path.stat().st_size for path in files.values()) < MAX_BYTES
    assert '"base_model_name_or_path": "opsin-mini"' in files["adapter_config.json"].read_text()


def test_the_script_writes_a_directory_that_loads(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--steps", "2", "--pictures", "2", "--batch", "2", "--rank", "2", "--tested", "1"]
    monkeypatch.setattr(sys, "argv", ["train.py", "fields", str(tmp_path / "out"), *few])
    train.main()
    assert "answers about pictures of another seed" in capsys.readouterr().out
    found = peft.converted(tmp_path / "out", mini.base)
    assert (found.rank, found.targets) == (2, {"language.attention": 20, "language.mlp": 15})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
