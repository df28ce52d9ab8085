"""The rule of special tokens in text, in its own words: their strings are encoded apart, without added tokens."""

import json
import re

from tokenizers import Tokenizer as Backend


class PlainRule:
    """case: a model directory with its oracle, and `extra`, text in front of a piece that keeps the tokenizer from
    adding a blank; its own ids are dropped."""

    def __init__(self, case) -> None:
        document = json.loads((case.directory / "tokenizer.json").read_text())
        added = [token["content"] for token in document["added_tokens"] if token["content"].strip()]
        self.strings = re.compile("|".join(re.escape(text) for text in sorted(added, key=len, reverse=True)))
        self._plain = Backend.from_str(json.dumps(document | {"added_tokens": [], "post_processor": None}))
        self._oracle, self._extra = case.oracle, case.extra

    def ids(self, texts: list[str], typed: list[str]) -> list[int]:
        """texts[0] typed[0] texts[1] ...: texts as the tokenizer has them, what was typed as plain text."""
        ids = self.usual(texts[0])
        for string, text in zip(typed, texts[1:], strict=True):
            ids += self._inside(lambda t: self._plain.encode(t).ids, string) + self._inside(self.usual, text)
        return ids

    def ids_of_pieces(self, pieces: list[tuple[str, bool]]) -> list[int]:
        """pieces: texts, and whether each is the template's own. Those that are not may hold added tokens' strings."""
        texts, typed, run = [""], [], ""
        for piece, own in [*pieces, ("", True)]:
            if not own:
                run += piece
                continue
            at = 0
            for found in self.strings.finditer(run):
                texts[-1] += run[at : found.start()]
                typed.append(found[0])
                texts.append("")
                at = found.end()
            texts[-1] += run[at:] + piece
            run = ""
        return self.ids(texts, typed)

    def usual(self, text: str) -> list[int]:
        return self._oracle(text, add_special_tokens=False)["input_ids"]

    def _inside(self, encode, text: str) -> list[int]:
        return encode(self._extra + text)[len(encode(self._extra)) :] if text else []
