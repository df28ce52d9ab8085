"""Questions and their true answers about a drawn picture: the tasks by name, and several of them at once."""

from __future__ import annotations

import random

from mini_opsin.picture import Picture
from mini_opsin.questions import as_json, places, reading, several, what, yes_no
from mini_opsin.questions.common import Asked, Task, vary
from mini_opsin.questions.pairs import ask_pair

__all__ = ["TASKS", "Asked", "ask", "ask_pair", "refine"]

HELD = "json_held"
IN_JSON = ("json", HELD)

TASKS: dict[str, Task] = {
    "caption": what.caption,
    "shape": what.shape,
    "color": what.colour,
    "object": what.emoji_name,
    "character": reading.character,
    "count": several.count,
    "count_of": several.count_of,
    "color_of": several.colour_of,
    "shape_of": several.shape_of,
    "where": places.where,
    "side": places.side,
    "compare": places.compare,
    "beside": places.beside,
    "relation": places.relation,
    "exists": yes_no.exists,
    "is_it": yes_no.is_it,
    "read": reading.read,
    "end_char": reading.end_char,
    "text_length": reading.text_length,
    "background": reading.ground,
    "ink": reading.ink,
    "json": as_json.free,
    HELD: as_json.held,
}


def refine(task: str, picture: Picture) -> str:
    """Splits a task by difficulty for the tables: 'caption_2', 'read_word'."""
    if task == "caption":
        return f"caption_{min(3, len(picture.things))}" if picture.kind == "scene" else f"caption_{picture.kind}"
    if task == "character":
        return "digit" if picture.text.isdigit() else "letter"
    if task == "read":
        return "read_number" if picture.text.isdigit() else "read_word"
    if task == "exists":
        return "exists_single" if len(picture.things) < 2 else "exists_many"
    return task


def ask(picture: Picture, rng: random.Random, weights: dict[str, float], n: int) -> list[Asked]:
    """Up to n different questions about one picture, tasks drawn by weight."""
    order = sorted(weights, key=lambda t: rng.random() ** (1 / weights[t]) if weights[t] > 0 else -1, reverse=True)
    out: list[Asked] = []
    for name in order:
        if weights[name] > 0 and len(out) < n:
            found = TASKS[name](picture, rng)
            if found:
                question = found[0] if name in IN_JSON else vary(rng, found[0])  # (keys are spelled as they are)
                out.append(Asked(refine(name, picture), question, found[1], held=name == HELD))
    return out
