"""Pictures, and the labels and questions that must be true of them."""

import hashlib
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from mini_opsin import questions
from mini_opsin.batches import draw
from mini_opsin.curriculum import LARGE, LATE, WIDE, exam
from mini_opsin.fonts import MissingFontsError, find_fonts, fonts_from
from mini_opsin.labels import CLASS_ID, COLOUR_ID, IGNORE, dense_labels
from mini_opsin.picture import Picture, Thing, patch_owner
from mini_opsin.scenes import scene
from mini_opsin.texts import text_picture
from mini_opsin.words import COLOURS, NUMBER_WORDS, SHAPES, article, plural

EVERYTHING = dict.fromkeys(questions.TASKS, 1.0)


def two_shapes() -> Picture:
    """A red circle at the top left, a blue square at the right, on white: 64 x 32 px."""
    pixels = np.full((32, 64, 3), 255, np.uint8)
    owner = np.zeros((32, 64), np.uint8)
    owner[0:16, 0:16], owner[8:24, 48:64] = 1, 2
    pixels[owner == 1], pixels[owner == 2] = (255, 0, 0), (0, 0, 255)
    circle = Thing("shape", "circle", "red", (0, 0, 16, 16))
    square = Thing("shape", "square", "blue", (48, 8, 64, 24))
    return Picture("scene", pixels, owner, [circle, square], "white")


def asked_about(picture: Picture, times: int = 150) -> dict[str, set[str]]:
    """Every question that comes up, with all answers it was given. (A schema asks for more than a question says.)"""
    answers: dict[str, set[str]] = defaultdict(set)
    for seed in range(times):
        for asked in questions.ask(picture, random.Random(seed), EVERYTHING, 30):
            if not asked.held:
                answers[asked.question.removesuffix(" Answer briefly.")].add(asked.answer)
    return answers


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is in the picture?", "A red circle and a blue square."),
        ("What color is the circle?", "Red"),
        ("What shape is blue?", "Square"),
        ("How many shapes are there?", "2"),
        ("How many blue objects are there?", "1"),
        ("Where is the circle?", "Top left"),
        ("What is on the left?", "A red circle."),
        ("Which is on the right, the circle or the square?", "The square"),
        ("Which is higher, the square or the circle?", "The circle"),
        ("What is left of the square?", "A red circle."),
        ("Is the circle left of the square?", "I am not sure."),
        ("Is there a circle?", "Yes"),
        ("Is there a red square?", "No"),
        ("Is the square red?", "No"),
        ("What color is the background?", "White"),
        ("Describe the picture as JSON.", '{"objects": ["red circle", "blue square"]}'),
        ("Count as JSON.", '{"count": 2}'),
    ],
)
def test_a_drawn_scene_gets_its_right_answers(question: str, answer: str):
    assert asked_about(two_shapes(), 400)[question] == {answer}


@pytest.mark.parametrize("kind", exam().kinds)
def test_no_question_has_two_answers(kind: str, fonts):
    for seed in range(4):
        rng = random.Random(f"{kind} {seed}")
        picture = draw(rng, kind, rng.choice(LARGE + WIDE), exam(), fonts)
        answers = asked_about(picture, 40)
        assert answers or kind == "clutter"
        assert {q: a for q, a in answers.items() if len(a) > 1} == {}


def fits(thing: Thing, noun: str) -> bool:
    """'red circle', 'circle', 'red shape', 'blue object', or any of them in the plural."""
    kinds = {thing.name, "shape", "object", "thing"}
    coloured = {f"{thing.colour} {kind}" for kind in kinds}
    return noun in kinds | coloured | {plural(n) for n in kinds | coloured} | {f"{thing.colour} {plural(thing.name)}"}


@pytest.mark.parametrize("task", ["exists", "count", "count_of"])
def test_yes_no_and_counts_agree_with_the_things(task: str, fonts):
    """Judged from the question's words alone, without the code that wrote it."""
    answers = Counter()
    for seed in range(400):
        rng = random.Random(seed)
        picture = scene(rng, (96, 80), seed % 6, fonts)
        asked = questions.TASKS[task](picture, rng)
        if asked:
            noun = re.sub(r"^.*\ban? |^(How many|Count the) | (are|do|can|in) .*$|[?.]$", "", asked[0])
            n = sum(fits(thing, noun) for thing in picture.things)
            assert asked[1] == (("Yes" if n else "No") if task == "exists" else str(n)), asked
            answers[asked[1]] += 1
    assert answers.total() > 200
    assert task != "exists" or 120 < answers["Yes"] < 220  # about half


@pytest.mark.parametrize("things", [0, 1, 2, 3, 5])
def test_a_scene_is_captioned_by_what_it_holds(things: int, fonts):
    for seed in range(20):
        picture = scene(random.Random(seed), (96, 96), things, fonts)
        said = questions.what.describe(picture)
        phrases = [t.phrase for t in picture.things]
        if len(set(phrases)) == 1 and things > 1:
            assert said == f"{NUMBER_WORDS[things]} {plural(phrases[0])}."
        else:
            assert [p for p in re.split(r", | and ", said.rstrip(".").lower()) if p != "nothing"] == [
                article(p) for p in phrases
            ]


def test_the_owner_map_and_the_colour_name_fit_the_pixels(bare_fonts):
    """Of the pixels that a shape owns, the one farthest from the ground has the shape's colour."""
    right = 0
    for seed in range(60):
        picture = scene(random.Random(seed), (64, 64), 1, bare_fonts)
        (thing,) = picture.things
        pixels = picture.pixels.astype(float)
        ground = np.median(pixels[picture.owner == 0], axis=0)
        owned = pixels[picture.owner == 1]
        ink = np.median(owned[np.argsort(((owned - ground) ** 2).sum(1))[-len(owned) // 4 :]], axis=0)
        nearest = min(COLOURS, key=lambda c: min(((ink - np.array(v)) ** 2).sum() for v in COLOURS[c]))
        right += nearest == thing.colour
        rows, columns = np.nonzero(picture.owner)
        assert np.allclose((columns.min(), rows.min(), columns.max(), rows.max()), thing.box, atol=2.5)
    assert right >= 48  # edges, noise and outlines cost some; a wrong name would be right one time in twelve


def test_dense_labels_name_class_colour_and_order():
    labels = dense_labels([two_shapes()])
    assert labels.token_class.tolist() == [[CLASS_ID["circle"], 0, 0, CLASS_ID["square"], 0, 0, 0, CLASS_ID["square"]]]
    assert labels.token_colour[0, 0] == COLOUR_ID["red"]
    assert labels.token_colour[0, 1] == COLOUR_ID["white"]
    assert labels.ordinal.tolist() == [[1, 0, 0, 2, 0, 0, 0, 2]]
    # Patches come in merge order: the four of the first visual token are the circle's.
    assert labels.patch_class[0, :5].tolist() == [CLASS_ID["circle"]] * 4 + [0]
    unnamed = two_shapes()
    unnamed.background = None
    assert dense_labels([unnamed]).token_colour[0, 1] == IGNORE


def test_a_patch_belongs_to_what_covers_a_fifth_of_it():
    owner = np.zeros((8, 16), np.uint8)
    owner[0, :8], owner[:2, 8:] = 1, 2  # 8 and 16 of 64 pixels
    assert patch_owner(owner, 2, 8).tolist() == [[0, 2]]
    assert patch_owner(owner, 0, 8).tolist() == [[0, 0]]


def test_fonts_that_are_missing_are_named_in_one_sentence(tmp_path):
    with pytest.raises(
        MissingFontsError, match=r"28 of the 28 fonts are missing.*apt-get install.*--allow-missing-fonts"
    ):
        find_fonts(tmp_path)

    class Args:
        fonts, allow_missing_fonts = tmp_path, False

    with pytest.raises(SystemExit, match="fonts are missing") as ended:
        fonts_from(Args)
    assert "\n" not in str(ended.value)


def test_without_fonts_text_is_pillows_and_nothing_is_an_emoji(bare_fonts):
    assert bare_fonts.emoji is None
    picture = text_picture(random.Random(0), (96, 48), "HELLO", 8, bare_fonts)
    written = np.abs(picture.pixels.astype(int) - np.median(picture.pixels, axis=(0, 1))).sum(2) > 60
    assert written[picture.owner > 0].mean() > 0.1  # ink lies where the map says
    assert [t.name for t in picture.things] == list("HELLO")
    kinds = {t.kind for seed in range(40) for t in scene(random.Random(seed), (64, 64), 3, bare_fonts).things}
    assert kinds == {"shape"}


def test_every_task_of_the_curriculum_exists():
    assert set(LATE) == set(questions.TASKS)
    assert set(SHAPES) <= set(CLASS_ID)


def test_a_seed_always_asks_the_same(bare_fonts):
    """Measured tables name a seed: its random stream may not shift between versions. (Pixels depend on Pillow.)"""
    asked = []
    for kind in exam().kinds:
        for seed in range(10):
            rng = random.Random(f"{kind} {seed}")
            picture = draw(rng, kind, rng.choice(LARGE + WIDE), exam(), bare_fonts)
            asked += [tuple(a) for a in questions.ask(picture, rng, EVERYTHING, 30)]
    assert hashlib.sha256(repr(asked).encode()).hexdigest()[:16] == "d6468fc01477331e"
