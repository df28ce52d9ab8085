"""A comparison as one HTML page: pictures in it, nothing fetched, nothing run, and every text as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2

from opsin_client.migrate.answers import Compared, Totals
from opsin_client.migrate.rows import text_of, with_pictures

# What an `img` may hold: a picture in the row, or one that was saved. An SVG could hold more than a picture.
DATA_URL = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")
MOST_PICTURES = 64 * 2**20  # characters of all in a page


@dataclass(frozen=True)
class ComparedJob:
    name: str
    old_model: str
    new_model: str
    compared: Sequence[Compared]

    @property
    def totals(self) -> Totals:
        return Totals.of(self.compared)


def page_of(jobs: Sequence[ComparedJob], as_data_url: Callable[[str], str]) -> str:
    """as_data_url: of a picture's URL; what is no data: URL then is not shown."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files(__package__).joinpath("comparison.html.jinja").read_text("utf-8"))
    return template.render(jobs=jobs, pictures=_Pictures(as_data_url).of, asked=_asked)


class _Pictures:
    def __init__(self, as_data_url: Callable[[str], str]) -> None:
        self._as_data_url, self._left = as_data_url, MOST_PICTURES

    def of(self, messages: list[Any]) -> list[str | None]:
        """None for one that is not shown."""
        found: list[str | None] = []

        def look(url: str) -> str:
            data = self._as_data_url(url)
            shown = len(data) <= self._left and DATA_URL.fullmatch(data) is not None
            self._left -= len(data) if shown else 0
            found.append(data if shown else None)
            return url

        with_pictures(messages, look)
        return found


def _asked(messages: list[Any]) -> list[tuple[str, str]]:
    """Who says what."""
    return [(str(message.get("role", "")), text_of(message)) for message in messages]
