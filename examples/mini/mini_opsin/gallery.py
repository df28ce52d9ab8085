"""The sample gallery: twelve pictures as a user might draw them (plain Pillow, 320 x 240), with questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from mini_opsin.fonts import DEBIAN, Fonts, emoji_bitmap, face

SIZE = (320, 240)
TEXT_FONT = "dejavu/DejaVuSans-Bold.ttf"
Painter = Callable[[Image.Image, ImageDraw.ImageDraw], None]
Box = tuple[int, int, int, int]

# (pictures, question, right answer)
QUESTIONS: list[tuple[list[str], str, str]] = [
    (["red_circle"], "What is in the picture?", "A red circle."),
    (["red_circle"], "What shape is this?", "Circle"),
    (["red_circle"], "What color is it?", "Red"),
    (["red_circle"], "Is there a square?", "No"),
    (["square_and_star"], "Describe the picture.", "A blue square and an orange star."),
    (["square_and_star"], "What color is the star?", "Orange"),
    (["square_and_star"], "What shape is blue?", "Square"),
    (["square_and_star"], "What is on the left?", "A blue square."),
    (["square_and_star"], "Is there a blue star?", "No"),
    (["three_triangles"], "How many triangles are there?", "3"),
    (["three_triangles"], "What do you see?", "Three green triangles."),
    (["circle_above_square"], "What is above the square?", "A purple circle."),
    (["circle_above_square"], "Which is lower, the circle or the square?", "The square"),
    (["five_dots"], "How many shapes are there?", "5"),
    (["cat"], "What is this?", "A cat."),
    (["cat"], "Is this a dog?", "No"),
    (["dog_and_pizza"], "What is in the picture?", "A dog and a pizza."),
    (["dog_and_pizza"], "Where is the pizza?", "Right"),
    (["rocket"], "What object is this?", "Rocket"),
    (["digit_seven"], "What digit is this?", "7"),
    (["letter_k"], "What letter is this?", "K"),
    (["letter_k"], "What color is the background?", "Red"),
    (["hello"], "What does it say?", '"HELLO"'),
    (["hello"], "What is the first letter?", "H"),
    (["number"], "What number is this?", "2026"),
    (["cat", "rocket"], "Which image has a rocket?", "Second"),
    (["cat", "rocket"], "What is in the first image?", "A cat."),
    ([], "Hello", "Hello! Show me a simple picture and ask me about it."),
]


def circles(*boxes: Box, ink: str) -> Painter:
    def paint(image: Image.Image, d: ImageDraw.ImageDraw) -> None:
        for box in boxes:
            d.ellipse(box, fill=ink)

    return paint


def square(box: Box, ink: str) -> Painter:
    return lambda image, d: d.rectangle(box, fill=ink)


def triangles(*xs: int, ink: str) -> Painter:
    def paint(image: Image.Image, d: ImageDraw.ImageDraw) -> None:
        for x in xs:
            d.polygon([(x, 84), (x - 36, 156), (x + 36, 156)], fill=ink)

    return paint


def star(x: int, y: int, r: int, ink: str) -> Painter:
    unit = [(0, -1), (0.24, -0.32), (0.95, -0.31), (0.38, 0.12), (0.59, 0.81)]
    unit += [(0, 0.4), (-0.59, 0.81), (-0.38, 0.12), (-0.95, -0.31), (-0.24, -0.32)]
    return lambda image, d: d.polygon([(x + a * r, y + b * r) for a, b in unit], fill=ink)


def text(font: Path | None, value: str, size: int, ink: str) -> Painter:
    return lambda image, d: d.text((160, 120), value, font=face(font, size), fill=ink, anchor="mm")


def emoji(font: Path, *spots: tuple[str, int, int, int]) -> Painter:
    """spots: the character, its centre, its size."""

    def paint(image: Image.Image, d: ImageDraw.ImageDraw) -> None:
        for char, x, y, size in spots:
            stamp = emoji_bitmap(font, char).resize((size, size), Image.Resampling.LANCZOS)
            image.paste(stamp, (x - size // 2, y - size // 2), stamp)

    return paint


def picture(*painters: Painter, ground: str = "white") -> Image.Image:
    image = Image.new("RGB", SIZE, ground)
    for paint in painters:
        paint(image, ImageDraw.Draw(image))
    return image


def of_shapes() -> dict[str, Image.Image]:
    dots = [(x - 24, y - 24, x + 24, y + 24) for x, y in ((60, 60), (260, 60), (160, 120), (60, 180), (260, 180))]
    blue_square, green_square = square((40, 80, 130, 170), "blue"), square((120, 140, 200, 220), "green")
    return {
        "red_circle": picture(circles((100, 60, 220, 180), ink="red")),
        "square_and_star": picture(blue_square, star(230, 120, 60, "orange")),
        "three_triangles": picture(triangles(65, 160, 255, ink="green"), ground="#fff8dc"),
        "circle_above_square": picture(circles((120, 20, 200, 100), ink="purple"), green_square),
        "five_dots": picture(circles(*dots, ink="black")),
    }


def of_text(font: Path | None) -> dict[str, Image.Image]:
    return {
        "digit_seven": picture(text(font, "7", 180, "navy")),
        "letter_k": picture(text(font, "K", 180, "white"), ground="darkred"),
        "hello": picture(text(font, "HELLO", 84, "black")),
        "number": picture(text(font, "2026", 100, "darkgreen")),
    }


def of_emoji(font: Path) -> dict[str, Image.Image]:
    return {
        "cat": picture(emoji(font, ("🐱", 160, 120, 150))),
        "dog_and_pizza": picture(emoji(font, ("🐕", 85, 120, 110), ("🍕", 235, 120, 110)), ground="#e8f4ff"),
        "rocket": picture(emoji(font, ("🚀", 160, 120, 160)), ground="#101030"),
    }


def gallery(fonts: Fonts, root: Path = DEBIAN) -> dict[str, Image.Image]:
    """The pictures by name, in at most 128 colours, which keeps each file under 20 KB; no emoji without their font."""
    font = root / TEXT_FONT
    drawn = of_shapes() | of_text(font if font in fonts.text else fonts.text[0])
    drawn |= of_emoji(fonts.emoji) if fonts.emoji else {}
    return {name: image.quantize(128).convert("RGB") for name, image in drawn.items()}
