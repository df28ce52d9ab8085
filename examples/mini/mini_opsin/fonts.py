"""The fonts that training pictures are drawn with: Debian's, by file, so that a run can be repeated."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

DEBIAN = Path("/usr/share/fonts/truetype")
EMOJI = "noto/NotoColorEmoji.ttf"
EMOJI_STRIKE = 109  # the only bitmap size in Noto Color Emoji
TEXT = [
    "dejavu/DejaVuSans.ttf",
    "dejavu/DejaVuSans-Bold.ttf",
    "dejavu/DejaVuSansMono.ttf",
    "dejavu/DejaVuSerif.ttf",
    "dejavu/DejaVuSerif-Bold.ttf",
    "dejavu/DejaVuSansCondensed-Bold.ttf",
    "liberation/LiberationSans-Regular.ttf",
    "liberation/LiberationSans-Bold.ttf",
    "liberation/LiberationSerif-Regular.ttf",
    "liberation/LiberationMono-Bold.ttf",
    "freefont/FreeSans.ttf",
    "freefont/FreeSerifBold.ttf",
    "freefont/FreeMonoBold.ttf",
    "lato/Lato-Regular.ttf",
    "lato/Lato-Bold.ttf",
    "lato/Lato-Black.ttf",
    "roboto/unhinted/RobotoTTF/Roboto-Regular.ttf",
    "roboto/unhinted/RobotoTTF/Roboto-Bold.ttf",
    "open-sans/OpenSans-Regular.ttf",
    "open-sans/OpenSans-Bold.ttf",
    "comfortaa/Comfortaa-Bold.ttf",
    "crosextra/Carlito-Bold.ttf",
    "liberation/LiberationSans-Italic.ttf",
]
# Never trained on: what reading in an unknown font is measured with.
HELD_OUT = [
    "liberation/LiberationSerif-Bold.ttf",
    "crosextra/Caladea-Bold.ttf",
    "roboto/unhinted/RobotoTTF/Roboto-Medium.ttf",
    "open-sans/OpenSans-Semibold.ttf",
]
APT = (
    "apt-get install fonts-noto-color-emoji fonts-dejavu fonts-liberation fonts-freefont-ttf fonts-lato "
    "fonts-roboto-unhinted fonts-open-sans fonts-comfortaa fonts-crosextra-carlito fonts-crosextra-caladea"
)
Face = ImageFont.FreeTypeFont


class MissingFontsError(FileNotFoundError):
    """A font that the recipe needs is not installed; the message says which and how to install it."""


@dataclass(frozen=True)
class Fonts:
    """Font files. None among the texts stands for Pillow's own font; without an emoji font pictures hold no emoji."""

    text: tuple[Path | None, ...]
    held_out: tuple[Path | None, ...]
    emoji: Path | None


def find_fonts(root: Path = DEBIAN, lenient: bool = False) -> Fonts:
    """The recipe's fonts below `root`. Raises MissingFontsError unless all are there or the caller is lenient."""
    wanted = [*TEXT, *HELD_OUT, EMOJI]
    missing = [name for name in wanted if not (root / name).is_file()]
    if missing and not lenient:
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise MissingFontsError(
            f"{len(missing)} of the {len(wanted)} fonts are missing below {root} ({few}): run `{APT}`, "
            "or give --allow-missing-fonts for a trial that uses what there is"
        )
    text, held_out = ([root / n for n in names if (root / n).is_file()] for names in (TEXT, HELD_OUT))
    emoji = None if EMOJI in missing else root / EMOJI
    return Fonts(tuple(text) or (None,), tuple(held_out) or tuple(text) or (None,), emoji)


def add_font_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fonts", type=Path, default=DEBIAN, metavar="DIR", help=f"where fonts are (default {DEBIAN})")
    parser.add_argument(
        "--allow-missing-fonts",
        action="store_true",
        help="a trial, not the recipe: use what there is, else Pillow's own font, and no emoji",
    )


def fonts_from(args: argparse.Namespace) -> Fonts:
    """What the options of add_font_options ask for; a script ends with one sentence where fonts are missing."""
    try:
        return find_fonts(args.fonts, args.allow_missing_fonts)
    except MissingFontsError as error:
        raise SystemExit(str(error)) from None


@lru_cache(maxsize=4096)
def face(path: Path | None, size: int) -> Face:
    if path is not None:
        return ImageFont.truetype(path, size)
    own = ImageFont.load_default(size)
    if not isinstance(own, ImageFont.FreeTypeFont):
        raise MissingFontsError(f"this Pillow is built without FreeType and has no font of {size} px: run `{APT}`")
    return own


@lru_cache(maxsize=512)
def emoji_bitmap(path: Path, char: str) -> Image.Image:
    """The emoji as RGBA, cropped to its ink, at most 96 px."""
    canvas = Image.new("RGBA", (170, 170))
    ImageDraw.Draw(canvas).text((15, 15), char, font=face(path, EMOJI_STRIKE), embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the emoji font has no picture for {char!r}")
    canvas = canvas.crop(box)
    canvas.thumbnail((96, 96), Image.Resampling.LANCZOS)
    return canvas
