"""A report's chart as a PNG, drawn by Pillow."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from opsin_server.quantize.page import bars
from opsin_server.quantize.report import MEASURES, Report, shown

WIDTH, HEIGHT, EDGE, TITLE, NAMES = 1200, 640, 40, 90, 170  # pixels; below the bars stand names of layers, upright
SIZE, LEAST = 20, 14  # of letters, in pixels; names stand where a bar has room for them
GROUND, TEXT, LINE, BAR = "#ffffff", "#1c1c1e", "#dddddd", "#3b6ea5"


def draw_chart(report: Report, path: Path) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    draw, large, small = ImageDraw.Draw(image), ImageFont.load_default(SIZE), ImageFont.load_default(LEAST)
    wide, tall = WIDTH - 2 * EDGE, HEIGHT - TITLE - NAMES
    draw.text((EDGE, 16), _title(report), TEXT, large)
    highest = shown(report.layer_measure, max(map(report.height, report.layers)))
    draw.text((EDGE, 48), f"{MEASURES[report.layer_measure]} of each layer, up to {highest}", TEXT, large)
    for y in (TITLE, TITLE + tall):
        draw.line((EDGE, y, EDGE + wide, y), LINE)
    found = bars(report, wide, tall)
    every = max(1, -(-len(found) * (LEAST + 2) // wide))  # layers of which one has a name
    for number, (bar, layer) in enumerate(zip(found, report.layers, strict=True)):
        left, top = EDGE + bar.x, TITLE + bar.y
        draw.rectangle((left, top, left + max(1, bar.width), TITLE + tall), BAR)
        if number % every == 0:
            _write_upright(image, layer.name, small, (int(left + bar.width / 2), TITLE + tall + 8))
    image.save(path, optimize=True)


def _title(report: Report) -> str:
    whole = "" if report.kl is None else f": KL divergence {report.kl:.4f}, same next token {report.agreement:.1%}"
    return f"{report.model} in {report.scheme}{whole}"


def _write_upright(
    image: Image.Image, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, top: tuple[int, int]
) -> None:
    """Read from below; its end is in the middle of `top`."""
    _, _, right, lower = (int(side) for side in font.getbbox(text))
    line = Image.new("RGB", (min(right, NAMES - 12), lower + 2), GROUND)
    ImageDraw.Draw(line).text((0, 0), text, TEXT, font)
    turned = line.rotate(90, expand=True)
    image.paste(turned, (top[0] - turned.width // 2, top[1]))
