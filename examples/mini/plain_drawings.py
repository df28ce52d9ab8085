"""Plain drawings as a newcomer would make them, with questions: a test of any opsin-mini, behind any door.

    python plain_drawings.py                     # scores the shipped model through transformers
    python plain_drawings.py MODEL_DIR --seeds 1 2 3

One or two shapes of different names and colours on a white or pale ground, drawn with nothing but Pillow; this is not
the training generator. `drawings` asks the questions that the project's README shows. `unseen_wordings` asks the same
in words that no training row has. `harder` asks what the model is known to be weaker at.
"""

from __future__ import annotations

import argparse
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "gray", "cyan")
GROUNDS = ("white", "white", "white", "cornsilk", "aliceblue", "whitesmoke", "lavenderblush", "honeydew")
SIZES = ((320, 240), (480, 480), (640, 480))
SHIPPED = Path(__file__).parents[2] / "server/opsin_server/models/opsin-mini"

Asked = list[tuple[str, str]]  # (question, right answer)
Wordings = Mapping[str, Sequence[str]]  # kind of question -> ways to ask it

OWN: Wordings = {
    "what is there, one shape": ["What is in the picture?"],
    "which shape": ["What shape is this?"],
    "which color": ["What color is it?"],
    "color of one of two": ["What color is the {shape}?"],
    "is there": ["Is there a {shape}?"],
    "how many": ["How many things are there?"],
}
UNSEEN: Wordings = {
    "what is there, one shape": [
        "What can be seen here?",
        "What has been drawn here?",
        "Give me a short description of this drawing.",
    ],
    "which shape": ["Which geometric shape is drawn here?", "What figure is this?", "Tell me the shape."],
    "which color": ["Tell me its color.", "Which color does it have?", "In what color is it drawn?"],
    "color of one of two": [
        "Tell me the color of the {shape}.",
        "In which color is the {shape} drawn?",
        "The {shape} has which color?",
    ],
    "is there": ["Does it contain a {shape}?", "Can a {shape} be seen?", "Do we have a {shape} here?"],
    "how many": ["What is the number of shapes?", "How many figures did I draw?", "Tell me how many things there are."],
}
HARDER: Wordings = {
    "what is there, two shapes": ["What is in the picture?"],
    "what is on the left": ["What is on the left?"],
    "which is on the left": ["Which is on the left, the {other} or the {shape}?"],
}


class Shape(NamedTuple):
    name: str
    colour: str


class Drawing(NamedTuple):
    image: Image.Image
    shapes: list[Shape]  # from left to right


class Question(NamedTuple):
    kind: str
    text: str
    answer: str


def drawings(n: int, seed: int) -> list[tuple[Image.Image, Asked]]:
    """n pictures with the README's own questions."""
    return _plain(n, seed, OWN)


def unseen_wordings(n: int, seed: int) -> list[tuple[Image.Image, Asked]]:
    """The pictures of drawings(n, seed), asked in words that no training row has."""
    return _plain(n, seed, UNSEEN)


def harder(n: int, seed: int) -> list[tuple[Image.Image, Asked]]:
    """The pictures of drawings(n, seed) that hold two shapes, with questions about both at once."""
    return [(image, asked) for image, asked in _plain(n, seed, HARDER) if asked]


def _plain(n: int, seed: int, wordings: Wordings) -> list[tuple[Image.Image, Asked]]:
    return [(d.image, [(q.text, q.answer) for q in asked]) for d, asked in exam(n, seed, wordings)]


def exam(n: int, seed: int, wordings: Wordings) -> list[tuple[Drawing, list[Question]]]:
    """n drawings, the same for all wordings, and what is asked about each."""
    brush = random.Random(f"drawings {seed}")
    drawn = [draw(brush) for _ in range(n)]
    pick = random.Random(f"questions {seed}")
    return [(d, questions(d.shapes, pick, wordings)) for d in drawn]


def draw(rng: random.Random) -> Drawing:
    width, height = rng.choice(SIZES)
    image = Image.new("RGB", (width, height), rng.choice(GROUNDS))
    n = rng.choice((1, 2))
    shapes = [Shape(*pair) for pair in zip(rng.sample(SHAPES, n), rng.sample(COLOURS, n), strict=True)]
    for i, shape in enumerate(shapes):  # each in a column of its own, anywhere in it
        side = min(width / n, height)
        r = rng.uniform(0.15, 0.40) * side
        x = rng.uniform(i * width / n + r + 2, (i + 1) * width / n - r - 2)
        _paint(ImageDraw.Draw(image), shape, x, rng.uniform(r + 2, height - r - 2), r)
    return Drawing(image, shapes)


def _paint(d: ImageDraw.ImageDraw, shape: Shape, x: float, y: float, r: float) -> None:
    if shape.name == "circle":
        d.ellipse((x - r, y - r, x + r, y + r), fill=shape.colour)
    elif shape.name == "square":
        d.rectangle((x - r, y - r, x + r, y + r), fill=shape.colour)
    elif shape.name == "triangle":
        d.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=shape.colour)
    else:
        tips = [(r if k % 2 == 0 else 0.42 * r, k * math.pi / 5) for k in range(10)]
        d.polygon([(x + s * math.sin(a), y - s * math.cos(a)) for s, a in tips], fill=shape.colour)


def questions(shapes: list[Shape], rng: random.Random, wordings: Wordings) -> list[Question]:
    """Every kind that has a wording and fits the number of shapes; half of the yes/no questions are false."""
    phrases = [("an " if s.colour[0] in "aeiou" else "a ") + f"{s.colour} {s.name}" for s in shapes]
    everything = " and ".join(phrases)
    names = [s.name for s in shapes]
    chosen, present = rng.choice(shapes), rng.random() < 0.5
    asked_for = rng.choice(names if present else [name for name in SHAPES if name not in names])
    answers = {"is there": "Yes" if present else "No", "how many": str(len(shapes))}
    if len(shapes) == 1:
        answers |= {"what is there, one shape": _sentence(everything)}
        answers |= {"which shape": names[0].capitalize(), "which color": shapes[0].colour.capitalize()}
    else:
        answers |= {"what is there, two shapes": _sentence(everything), "what is on the left": _sentence(phrases[0])}
        answers |= {"which is on the left": f"The {names[0]}", "color of one of two": chosen.colour.capitalize()}
    out = []
    for kind, ways in wordings.items():
        shape = asked_for if kind == "is there" else names[0] if kind in HARDER else chosen.name
        text = rng.choice(ways).format(shape=shape, other=names[-1])
        if kind in answers:
            out.append(Question(kind, text, answers[kind]))
    return out


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


class Score(NamedTuple):
    exact: int  # answers that are exactly the right one
    holds: int  # answers that hold the right one, whatever stands around it
    n: int


def score(
    ask: Callable[[str, Image.Image], str], n: int, seeds: Sequence[int], wordings: Wordings
) -> dict[str, list[Score]]:
    """For each kind, one Score a seed. `ask` takes a question and a picture."""
    table: dict[str, list[Score]] = defaultdict(list)
    for seed in seeds:
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for drawing, asked in exam(n, seed, wordings):
            for question in asked:
                said = ask(question.text, drawing.image)
                holds = question.answer.rstrip(".").lower() in said.lower()
                for i, add in enumerate((said == question.answer, holds, 1)):
                    counts[question.kind][i] += add
        for kind, found in counts.items():
            table[kind].append(Score(*found))
    return dict(table)


def report(title: str, table: dict[str, list[Score]]) -> None:
    print(f"\n{title:44s} {'exact %':>8s} {'by seed':>12s} {'holds %':>8s} {'n':>6s}")
    for kind, scores in [*table.items(), ("all", _by_seed(table))]:
        exact, holds, n = (sum(s[i] for s in scores) for i in range(3))
        each = [round(100 * s.exact / s.n) for s in scores]
        spread = f"{min(each)}-{max(each)}"
        print(f"{kind:44s} {100 * exact / n:8.1f} {spread:>12s} {100 * holds / n:8.1f} {n:6d}")


def _by_seed(table: dict[str, list[Score]]) -> list[Score]:
    return [Score(*map(sum, zip(*seed, strict=True))) for seed in zip(*table.values(), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=SHIPPED)
    parser.add_argument("--pictures", type=int, default=60, help="for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mini_opsin.chat import Chat  # here, so that drawing alone needs neither torch nor transformers

    chat = Chat(args.model)
    for title, wordings in {"the README's own questions": OWN, "unseen wordings": UNSEEN, "harder": HARDER}.items():
        report(title, score(chat.ask, args.pictures, args.seeds, wordings))


if __name__ == "__main__":
    main()
