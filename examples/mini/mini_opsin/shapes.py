"""The nine shapes: their corners in the unit circle, and the styles they are painted in."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import ImageDraw

from mini_opsin.words import RGB

Point = tuple[float, float]


@dataclass
class Corners:
    points: list[Point]
    turn: float = 12.0  # degrees it may be turned by and still have its name
    stretch: float | None = None  # width over height, where the shape's name depends on it


def _regular(n: int, radii: list[float], start: float) -> list[Point]:
    angles = [start + 2 * math.pi * i / n for i in range(n)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def _box() -> list[Point]:
    return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]


def _circle(rng: random.Random) -> Corners:
    return Corners(_regular(40, [1.0], 0))


def _oval(rng: random.Random) -> Corners:
    return Corners(_regular(40, [1.0], 0), stretch=rng.choice((rng.uniform(0.42, 0.64), rng.uniform(1.6, 2.3))))


def _square(rng: random.Random) -> Corners:
    return Corners(_box())


def _rectangle(rng: random.Random) -> Corners:
    return Corners(_box(), stretch=rng.choice((rng.uniform(0.38, 0.62), rng.uniform(1.6, 2.5))))


def _triangle(rng: random.Random) -> Corners:
    points = [(rng.uniform(-0.25, 0.25), -0.95), (0.92, 0.85), (-0.92, 0.85)]
    if rng.random() < 0.15:
        points = [(x, -y) for x, y in points]
    return Corners(points, turn=20.0)


def _star(rng: random.Random) -> Corners:
    return Corners(_regular(10, [1.0, rng.uniform(0.38, 0.5)], -math.pi / 2), turn=30.0)


def _heart(rng: random.Random) -> Corners:
    def height(t: float) -> float:
        return -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16

    return Corners([(math.sin(t) ** 3, height(t)) for t in (2 * math.pi * i / 36 for i in range(36))], turn=15.0)


def _diamond(rng: random.Random) -> Corners:
    w = rng.uniform(0.6, 0.95)
    return Corners([(0, -1.0), (w, 0), (0, 1.0), (-w, 0)], turn=6.0)


def _cross(rng: random.Random) -> Corners:
    t = rng.uniform(0.22, 0.36)
    arm: list[Point] = [(-t, -1), (t, -1), (t, -t)]
    return Corners([*arm, *((-y, x) for x, y in arm), *((-x, -y) for x, y in arm), *((y, -x) for x, y in arm)])


DRAWN: dict[str, Callable[[random.Random], Corners]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "rectangle": _rectangle,
    "star": _star,
    "heart": _heart,
    "diamond": _diamond,
    "cross": _cross,
    "oval": _oval,
}


def outline(rng: random.Random, name: str) -> list[Point]:
    """The shape's corners in the unit circle, slightly stretched and turned."""
    stretch = rng.uniform(0.9, 1.1)
    corners = DRAWN[name](rng)
    stretch = corners.stretch or stretch
    sx, sy = (stretch, 1.0) if stretch <= 1 else (1.0, 1 / stretch)
    a = math.radians(rng.uniform(-corners.turn, corners.turn)) if rng.random() < 0.5 else 0.0
    cos, sin = math.cos(a), math.sin(a)
    return [(x * sx * cos - y * sy * sin, x * sx * sin + y * sy * cos) for x, y in corners.points]


def draw_shape(
    rng: random.Random, draw: ImageDraw.ImageDraw, points: list[Point], ink: RGB, ground: RGB, radius: float
) -> None:
    """Outlined, filled, or filled with an edge."""
    style = rng.random()
    width = max(1, round(radius * rng.uniform(0.14, 0.28)))
    closed = [*points, points[0], points[1]]
    if style < 0.22:
        draw.line(closed, fill=ink, width=max(2, width), joint="curve")
        return
    draw.polygon(points, fill=ink)
    if style < 0.32:
        edge = (0, 0, 0) if sum(ground) > 300 else (255, 255, 255)
        draw.line(closed, fill=edge, width=max(1, width // 2), joint="curve")
