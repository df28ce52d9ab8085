"""The forward against transformers, a few steps of training, and what survives a restart and an export."""

import json
import math
import random
import subprocess
import sys
from runpy import run_path

import pytest
import torch
from mini_opsin import checkpoint, curriculum, exporting, ranks, schedule
from mini_opsin.batches import Batch, Form, Stage, chat_batch, picture_batch
from mini_opsin.chat import Chat
from mini_opsin.encoder import Encoder
from mini_opsin.exam import exam_batches, majority, marks, overall, score
from mini_opsin.loading import load_model, load_tokenizer
from mini_opsin.nouns import find_nouns
from mini_opsin.optim import Muon, orthogonal, split
from mini_opsin.packing import pack
from mini_opsin.parity import check_parity
from mini_opsin.picture import Picture, Thing
from mini_opsin.questions import TASKS, Asked
from mini_opsin.tokenizer import CHAT_TEMPLATE, train
from mini_opsin.trainer import Settings, Trainer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

STEPS = 14


@pytest.fixture(scope="module")
def tokenizer(shipped):
    return load_tokenizer(shipped)


def make(tokenizer, tiny, fonts, **settings) -> Trainer:
    return Trainer(tokenizer, tiny, Settings(bf16=False, batch_scale=0.2, **settings), fonts)


@pytest.fixture(scope="module")
def trained(tokenizer, tiny, fonts):
    """A tiny model after some steps at five times the usual rate (the warm-up is 60 steps), and what it was before."""
    trainer = make(tokenizer, tiny, fonts, muon_lr=0.05, adam_lr=0.01)
    before = {name: p.detach().clone() for name, p in trainer.named.items()}
    unseen = some_batch(tokenizer, fonts, pictures=48)
    first = trainer.losses.of_pictures(unseen, 1.0)[1]
    parts = [trainer.train_step(0.3) for _ in range(STEPS)]
    assert all(math.isfinite(v) for p in parts for v in p.values())
    return trainer, before, (first, trainer.losses.of_pictures(unseen, 1.0)[1])


@pytest.fixture(scope="module")
def exported(trained, tokenizer, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    checkpoint.save(trained[0], run / "last.safetensors")
    tokenizer.save_pretrained(run / "tokenizer")
    exporting.export(run / "last.safetensors", run / "model", run / "heads.safetensors")
    return run


def some_batch(tokenizer, fonts, seed: int = 0, pictures: int = 8) -> Batch:
    form = Form((96, 64), pictures, pictures, 128, multi_turn=0.5)
    return picture_batch(Encoder(tokenizer), random.Random(seed), curriculum.exam(), form, fonts)


def test_training_lowers_the_losses_of_unseen_pictures(trained):
    first, last = trained[2]
    names = ("text", "patch_class", "token_class", "ordinal", "position", "noun", "place")
    for name in names:  # (how far the weakest comes in few steps depends on the processor's rounding)
        assert last[name] < first[name], (name, first[name], last[name])
    assert sum(last[name] for name in names) < 0.95 * sum(first[name] for name in names), (first, last)


def test_every_parameter_moves(trained):
    trainer, before, _ = trained
    unchanged = [name for name, p in trainer.named.items() if torch.equal(p, before[name])]
    assert unchanged == []
    assert trainer.step >= STEPS
    assert trainer.questions > trainer.images >= STEPS * 12


def test_packed_branches_are_transformers_conversations(tokenizer, tiny, fonts):
    model = make(tokenizer, tiny, fonts).model
    for seed in range(3):
        batch = some_batch(tokenizer, fonts, seed)
        assert int(batch.packed.layout.branch[0].max()) >= 2  # more than one question in the row
        assert check_parity(model, batch.pixels, batch.packed.layout) <= 1e-4


def test_parity_sees_a_wrong_forward(tokenizer, tiny, fonts):
    model, batch = make(tokenizer, tiny, fonts).model, some_batch(tokenizer, fonts)
    batch.packed.layout.offset[:, 3:] += 1
    assert check_parity(model, batch.pixels, batch.packed.layout) > 1e-3


def test_training_ids_are_those_of_the_chat_template(tokenizer, fonts):
    """What is trained must be what a server will send, for one and two pictures and for a system prompt."""
    assert tokenizer.chat_template == CHAT_TEMPLATE
    encoder = Encoder(tokenizer)
    for images, system in ((0, None), (1, "Answer in one word."), (2, None)):
        turns = [("What is this?", "A cat."), ("What does it say?", '"HELLO"')]
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": turns[0][0]}]
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": turns[0][1]}]
        messages += [{"role": "user", "content": turns[1][0]}, {"role": "assistant", "content": turns[1][1]}]
        served = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
        ids, spans = encoder.branch(turns)
        pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        prefix = encoder.prefix(images, system)
        joined = [i for k, part in enumerate(prefix) for i in ([pad] if k else []) + part]
        assert joined + ids == served[: len(joined) + len(ids)]
        assert tokenizer.decode(served[len(joined) + len(ids) :]).strip() == ""
        assert [tokenizer.decode(ids[a:b]) for a, b in spans] == ["A cat.<|im_end|>", '"HELLO"<|im_end|>']


def test_a_new_tokenizer_spells_and_knows_its_classes(bare_fonts):
    tokenizer = train(1536, 40, 7, bare_fonts)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode('"HELLO"')) == list('"HELLO"')
    assert tokenizer.tokenize("a red circle") == ["a", "Ġred", "Ġcircle"]
    with pytest.raises(ValueError, match="enlarge the vocabulary"):
        train(300, 5, 7, bare_fonts)


def test_answers_are_marked_where_they_lie(tokenizer):
    encoder = Encoder(tokenizer)
    asked = [Asked("a", "What is this?", "A cat."), Asked("b", "What color is it?", "Red")]
    packed = pack(encoder, random.Random(0), [asked, asked[:1]], 96, encoder.prefix(1, None), (3, 4), 0.0)
    flat = packed.layout.ids.flatten()
    assert torch.equal(flat[packed.target_at + 1], packed.target)
    assert packed.lengths == [4, 2, 4]  # A, cat, ., end; Red, end
    assert torch.allclose(packed.weight[:4], torch.tensor(0.5))
    with_room_for_one = pack(encoder, random.Random(0), [asked], 20, encoder.prefix(1, None), (3, 4), 0.0)
    assert [a.task for a in with_room_for_one.asked] == ["a"]


def test_what_a_schema_writes_is_not_learned(tokenizer):
    """The first brace and the keys are the schema's; values, and what stands between, are the answer's."""
    encoder = Encoder(tokenizer)
    answer = '{"shape": "star", "color": "red"}'
    asked = Asked("json_held", "What is this?", answer, held=True)
    packed = pack(encoder, random.Random(0), [[asked]], 96, encoder.prefix(1, None), (3, 4), 0.0)
    flat = packed.layout.ids.flatten()
    assert torch.equal(flat[packed.target_at + 1], packed.target)
    assert tokenizer.decode(packed.target) == ': "star", "color: "red"}<|im_end|>'.replace("color", "")
    assert packed.lengths == [len(packed.target)]
    whole = pack(encoder, random.Random(0), [[asked._replace(held=False)]], 96, encoder.prefix(1, None), (3, 4), 0.0)
    assert tokenizer.decode(whole.target) == answer + "<|im_end|>"


def test_nouns_know_their_things(tokenizer):
    """'the red circle': two things match at 'red', and two are circles, but only one is both."""
    things = [Thing("shape", "circle", "red", (0, 0, 16, 16)), Thing("shape", "square", "red", (40, 16, 56, 32))]
    things.append(Thing("shape", "circle", "green", (20, 0, 36, 16)))
    blank = torch.zeros(32, 64, dtype=torch.uint8).numpy()
    picture = Picture("scene", torch.zeros(32, 64, 3, dtype=torch.uint8).numpy(), blank, things)
    encoder = Encoder(tokenizer)
    asked = [Asked("compare", "Which is on the left, the red circle or the square?", "The red circle")]
    layout = pack(encoder, random.Random(0), [asked], 96, encoder.prefix(1, None), (2, 4), 0.0).layout
    nouns = find_nouns(encoder, layout, [picture])
    said = tokenizer.convert_ids_to_tokens(layout.ids.flatten()[nouns.at].tolist())
    assert said == ["Ġred", "Ġcircle", "Ġsquare", "Ġred", "Ġcircle"]
    assert nouns.targets[:, 0].tolist() == [2, 1, 1, 2, 1]
    assert nouns.targets[1, 1:3].tolist() == [0, 0]
    assert nouns.targets[2, 1:3].tolist() == [1, 3]  # the visual token's row and column
    assert nouns.places[2].tolist() == [2, 2, 2, 2]  # right of and below the circle; the last thirds


def test_muon_makes_orthogonal_steps():
    g = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(g, 5))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3
    p = nn.Parameter(torch.ones(4, 4))
    p.grad = torch.eye(4)
    muon = Muon([("p", p)], lr=0.1, weight_decay=0.0)
    muon.step(0.0)
    assert torch.equal(p, torch.ones(4, 4))
    muon.step(1.0)
    assert float(p.detach().trace()) < 3.8
    names = ["model.a.weight", "model.embed_tokens.weight", "heads.row.weight"]
    inside, rest = split([*((name, p) for name in names), ("model.a.bias", nn.Parameter(p[0]))])
    assert [n for n, _ in inside] == ["model.a.weight"]
    assert [n for n, _ in rest] == [*names[1:], "model.a.bias"]


def test_gradients_are_averaged_over_the_ranks(monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: (0, 2))
    monkeypatch.setattr(ranks.dist, "all_reduce", lambda t: t.add_(1))  # the other rank's gradients are all 1
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.tensor([1.0, 3.0])
    ranks.average_gradients([p, q])
    assert p.grad.tolist() == [1.0, 2.0]
    assert q.grad.tolist() == [[0.5, 0.5], [0.5, 0.5]]  # had none here


def test_ranks_that_drift_apart_are_noticed(trained, monkeypatch):
    schedule.check_agreement(trained[0])
    monkeypatch.setattr(schedule, "agree", lambda value: value + 1e-6)
    with pytest.raises(RuntimeError, match="other weights than rank 0"):
        schedule.check_agreement(trained[0])


def test_the_schedule_warms_up_holds_and_ends():
    rate = curriculum.learning_rate
    assert rate(0.0, 0) == pytest.approx(1 / 60)
    assert rate(0.1, 59) == rate(0.5, 5000) == 1.0
    assert rate(0.75, 5000) == pytest.approx(0.502)
    assert rate(1.0, 5000) == pytest.approx(0.002)
    for i in range(40):
        plan = curriculum.plan(i / 40, random.Random(i))
        assert all(w % 16 == h % 16 == 0 and w * h <= exporting.MAX_PIXELS for w, h in plan.sizes)
        assert set(plan.stage.tasks) <= set(TASKS)


def test_a_resumed_run_goes_on_as_if_never_stopped(trained, tokenizer, tiny, fonts, tmp_path):
    trainer = trained[0]
    checkpoint.save(trainer, tmp_path / "last.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]  # no half-written file stays
    state = checkpoint.read(tmp_path / "last.safetensors")
    assert state.sizes == tiny
    again = make(tokenizer, state.sizes, fonts, muon_lr=0.05, adam_lr=0.01, seed=1)
    checkpoint.resume(again, state)
    assert (again.step, again.fraction) == (trainer.step, 0.3)
    assert (again.images, again.questions) == (trainer.images, trainer.questions)
    assert all(torch.equal(p, again.named[name]) for name, p in trainer.named.items())
    trainer.reseed()  # both draw the same pictures from here
    for run in (trainer, again):
        run.train_step(0.3)
    assert again.step == trainer.step == state.counters["step"] + 1
    assert all(torch.equal(p, again.named[name]) for name, p in trainer.named.items())  # momentum came back too


def test_a_checkpoint_that_does_not_fit_is_refused(trained, tokenizer, tiny, fonts, tmp_path):
    checkpoint.save(trained[0], tmp_path / "last.safetensors")
    state = checkpoint.read(tmp_path / "last.safetensors")
    del state.tensors["heads.row.weight"]
    with pytest.raises(ValueError, match=r"missing \['heads.row.weight'\]"):
        checkpoint.resume(make(tokenizer, tiny, fonts), state)
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint.read(tmp_path / "foreign.safetensors")


def test_an_export_is_what_transformers_loads(trained, exported):
    assert exporting.parity_of(exported / "model") <= 1e-4
    model, saved = load_model(exported / "model"), load_file(exported / "last.safetensors")
    assert all(torch.equal(p, saved[n].bfloat16().float()) for n, p in model.named_parameters())
    assert set(load_file(exported / "heads.safetensors")) == set(dict(trained[0].heads.named_parameters()))
    assert isinstance(Chat(exported / "model").ask("Hello", max_new_tokens=3), str)


def test_an_export_has_the_settings_of_the_shipped_model(exported, shipped):
    for name in ("preprocessor_config.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        ours, theirs = ((where / name).read_text() for where in (exported / "model", shipped))
        if name == "generation_config.json":
            ours, theirs = (json.loads(text) | {"transformers_version": ""} for text in (ours, theirs))
        assert ours == theirs, name


def test_an_export_can_be_trained_on(exported, tokenizer, tiny, fonts):
    trainer = make(tokenizer, tiny, fonts, seed=5)
    checkpoint.init_from_export(trainer, exported / "model", exported / "heads.safetensors")
    saved = load_file(exported / "last.safetensors")
    assert torch.equal(trainer.named["heads.row.weight"], saved["heads.row.weight"])
    name = "model.visual.blocks.0.attn.qkv.weight"
    assert torch.equal(trainer.named[name], saved[name].bfloat16().float())
    assert (trainer.step, trainer.adam.state) == (0, {})


def test_the_shipped_model_keeps_its_marks(shipped, tokenizer, fonts):
    """The exam's table is far above a blind guess."""
    model, exam = load_model(shipped), exam_batches(Encoder(tokenizer), 20, 2, fonts, pictures=12)
    assert exporting.parity_of(shipped) <= 1e-4
    table, blind = score(model, exam, torch.float32), majority(exam)
    assert sum(n for _, n in table.values()) == sum(len(b.packed.asked) for b in exam)
    assert overall(table) > 60 > sum(blind.values()) / len(blind)


def test_marks_are_what_generation_gives(shipped, tokenizer, fonts):
    """On captions of three things, of which many are right in part."""
    stage = Stage({"scene3": 1.0}, {"caption": 1.0}, 6, 10)
    form = Form((96, 80), 10, 10, 128, multi_turn=0.0)
    batch, chat = picture_batch(Encoder(tokenizer), random.Random(3), stage, form, fonts), Chat(shipped)
    right = marks(chat.model, batch, torch.float32)
    pictures = [Image.fromarray(p.numpy()) for p in batch.pixels]
    generated = [chat.ask(a.question, p) == a.answer for a, p in zip(batch.packed.asked, pictures, strict=True)]
    assert right == generated
    assert 0 < sum(right) < 10


def test_small_talk_has_no_picture(tokenizer):
    packed = chat_batch(Encoder(tokenizer), random.Random(0), 3, 96)
    assert len(packed.layout.prefix) == 1
    assert {a.task for a in packed.asked} == {"chat"}


def options(tmp_path, *more: str) -> list[str]:
    """A short run on a machine without fonts."""
    few = ["--batch-scale", "0.1", "--exam-batches", "2", "--fonts", str(tmp_path), "--allow-missing-fonts"]
    return [str(tmp_path / "out"), "--minutes", "0.03", *few, *more]


def last_mark(out) -> dict:
    return json.loads((out / "log.jsonl").read_text().splitlines()[-1])


def test_a_run_from_nothing(tokenizer, tiny, tmp_path, monkeypatch, mini):
    out = tmp_path / "out"
    tokenizer.save_pretrained(out / "tokenizer")
    sizes = [f"--{name.replace('_', '-')}={size}" for name, size in vars(tiny).items()]
    monkeypatch.setattr(sys, "argv", ["train.py", *options(tmp_path, *sizes, "--marks", "0.01")])
    threads = torch.get_num_threads()
    run_path(str(mini / "train.py"))["main"]()  # (by its path: a benchmark has the same name)
    torch.set_num_threads(threads)
    state, mark = checkpoint.read(out / "last.safetensors"), last_mark(out)
    assert mark["step"] == state.counters["step"] > 0
    assert sum(n for _, n in mark["table"].values()) > 100
    assert "object" not in mark["table"]  # no emoji font, no emoji
    assert (state.sizes, state.counters["fraction"]) == (tiny, 1.0)
    assert {p.suffix for p in out.iterdir() if p.is_file()} == {".safetensors", ".jsonl"}


def test_the_command_line_resumes_on_two_ranks(mini, exported, tmp_path):
    before = checkpoint.read(exported / "last.safetensors")
    resume = ["--resume", str(exported / "last.safetensors"), "--start", "0.5", "--ranks", "2"]
    command = [sys.executable, str(mini / "train.py"), *options(tmp_path, *resume)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    after = checkpoint.read(tmp_path / "out" / "last.safetensors")
    steps = int(after.counters["step"] - before.counters["step"])
    assert steps > 0
    assert (
        after.counters["images"] == before.counters["images"] + steps * 2 * 12
    )  # the least batch on each of two ranks
    assert after.sizes == before.sizes
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").exists()
