"""Images that a row keeps in a column of their own, put where the text has their tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opsin_server.errors import BadRequest

TAG = "<image>"
_SOURCES = ("url", "path", "image")
Raw = dict[str, Any]


def column(row: Raw) -> list[str]:
    """The sources in `images`, or the one in `image` (LLaVA's data). Raises BadRequest."""
    if row.get("image") is not None and row.get("images") is not None:
        raise BadRequest("the row has both 'image' and 'images': give one", param="images")
    name = "image" if row.get("image") is not None else "images"
    value = row.get(name)
    listed = [] if value is None else value if isinstance(value, list) else [value]
    return [_source(entry, name if not isinstance(value, list) else f"{name}[{at}]") for at, entry in enumerate(listed)]


def _source(entry: Any, path: str) -> str:
    if isinstance(entry, dict) and len(said := {k: v for k, v in entry.items() if v is not None}) == 1:
        entry = next((said[key] for key in _SOURCES if key in said), entry)
    if not isinstance(entry, str):
        raise BadRequest(f"{path} must be a URL, or an object with one of {', '.join(_SOURCES)}", param=path)
    return entry


def place_images(messages: Any, sources: Sequence[str], path: str, tags: bool) -> Any:
    """The messages with each image where a tag in a text, or a part without a source, stands for it; without any of
    these all stand in front of the first question. tags: whether a tag counts although there is no image for it.
    Raises BadRequest where there are more or fewer of them than images."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages  # (whoever reads them says what is wrong)
    if not sources and not tags:
        return messages
    left = list(sources)
    placed = [_placed(message, f"{path}[{at}]", left) for at, message in enumerate(messages)]
    wanted = sum(count for _, count in placed)
    if wanted == 0 and sources:
        return _in_front([message for message, _ in placed], sources, path)
    if wanted != len(sources):
        raise BadRequest(
            f"the texts have {wanted} places for images, and the row has {len(sources)} images", param=path
        )
    return [message for message, _ in placed]


def _placed(message: Raw, path: str, left: list[str]) -> tuple[Raw, int]:
    """The message, and how many places it has. Takes from `left`."""
    content = message.get("content")
    if isinstance(content, str) and TAG in content:
        if message.get("role") != "user":
            raise BadRequest(f"{path}: {TAG} may stand in the user's messages only", param=path)
        pieces = content.split(TAG)
        if not pieces[0].strip():
            pieces[0] = ""
        parts = _interleaved(pieces, left)
        return {**message, "content": parts}, len(pieces) - 1
    if isinstance(content, list):
        count = 0
        parts = []
        for part in content:
            if _is_place(part):
                count += 1
                part = {**part, "image": left.pop(0)} if left else part
            parts.append(part)
        return {**message, "content": parts}, count
    return message, 0


def _interleaved(pieces: list[str], left: list[str]) -> list[Raw]:
    """One line break goes between an image and a text at the content's start or end: it is how a tag is written, and
    no part of what is said."""
    if not pieces[-1].strip():
        pieces[-1] = ""
    first = next((at for at, piece in enumerate(pieces) if piece.strip()), None)
    last = next((at for at in reversed(range(len(pieces))) if pieces[at].strip()), None)
    parts: list[Raw] = []
    for at, piece in enumerate(pieces):
        if at:
            parts.append({"type": "image", "image": left.pop(0) if left else ""})
        if first is not None and first == at > 0:
            piece = piece.removeprefix("\r").removeprefix("\n")
        if last is not None and last == at < len(pieces) - 1:
            piece = piece.removesuffix("\n").removesuffix("\r")
        outside = first is None or last is None or at < first or at > last
        if piece and not (outside and not piece.strip()):
            parts.append({"type": "text", "text": piece})
    return parts


def _is_place(part: Any) -> bool:
    """A part that stands for an image, and does not say which."""
    return (
        isinstance(part, dict)
        and part.get("type") == "image"
        and all(part.get(k) is None for k in ("image", "image_url"))
    )


def _in_front(messages: list[Raw], sources: Sequence[str], path: str) -> list[Raw]:
    at = next((n for n, message in enumerate(messages) if message.get("role") == "user"), None)
    if at is None:
        raise BadRequest(f"the row has {len(sources)} images, and {path} no message of the user's", param=path)
    content = messages[at].get("content")
    if any(
        isinstance(part, dict) and part.get("type") in ("image", "image_url")
        for m in messages
        if isinstance(m.get("content"), list)
        for part in m["content"]
    ):
        raise BadRequest(f"the row has images both in 'images' and in {path}: give them in one place", param=path)
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        return messages
    images = [{"type": "image", "image": source} for source in sources]
    return [*messages[:at], {**messages[at], "content": [*images, *parts]}, *messages[at + 1 :]]
