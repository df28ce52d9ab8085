"""From the engine's ids to the text that a client may see: detokenized, cut at stop strings, with its logprobs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from opsin_server.api.schemas.chat_response import Finish, TokenLogprob, TopLogprob
from opsin_server.ipc.messages import Logprobs, Output
from opsin_server.text.detokenizer import Detokenizer
from opsin_server.text.stops import StopFinder
from opsin_server.text.tokenizer import Tokenizer
from opsin_server.text.tool_reader import ToolCallDelta

UNLIKELY = -9999.0  # OpenAI's number for what JSON cannot hold: minus infinity


@dataclass(slots=True)
class Piece:
    choice: int = 0
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # of the logprobs' tokens: the characters in front of each
    finish: Finish | None = None
    stop: str | None = None  # the stop string that ended it
    calls: tuple[ToolCallDelta, ...] = ()
    cuts_call: bool = False  # it ends the answer within a call's arguments
    thoughts: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.logprobs or self.finish or self.calls or self.thoughts)


class OutputText:
    """One request's. Logprobs come with the text that their token begins in; those past a stop string are dropped.
    every_logprob: also those of special tokens, which add no text, and of the end."""

    def __init__(self, text: Detokenizer, stops: StopFinder, tokens: Tokenizer, every_logprob: bool = False) -> None:
        self._text, self._stops, self._tokens, self._every = text, stops, tokens, every_logprob
        self._made = 0  # characters detokenized
        self._shown = 0  # characters that left
        self._held: deque[tuple[int, TokenLogprob]] = deque()  # (where the token's text begins, its logprobs)
        self.tokens = 0

    def read(self, output: Output) -> Piece:
        piece = Piece()
        for index, token in enumerate(output.ids):  # one by one: those past a stop string do not count
            if output.logprobs and (self._every or not self._tokens.is_special(token)):
                self._held.append((self._made, self._described(token, output.logprobs[index])))
            self.tokens += 1
            if self._push(self._text.push((token,)), piece):
                break
        if self._every and output.end is not None and output.logprobs and piece.finish is None:
            self._held.append((self._made, self._described(output.end, output.logprobs[-1])))
        if output.finish is not None and piece.finish is None:
            self._finish(piece, "length" if output.finish == "length" else "stop")
        self._release(piece)
        return piece

    def _push(self, text: str, piece: Piece) -> bool:
        """Whether a stop string was found."""
        self._made += len(text)
        shown, stopped = self._stops.push(text)
        piece.text += shown
        self._shown += len(shown)
        if stopped:
            piece.finish, piece.stop = "stop", self._stops.found
        return stopped

    def _finish(self, piece: Piece, finish: Finish) -> None:
        if not self._push(self._text.finish(), piece):
            rest = self._stops.finish()
            piece.text += rest
            piece.finish = finish
            self._shown = self._made + 1  # past every token

    def _described(self, token: int, given: Logprobs) -> TokenLogprob:
        top = [TopLogprob(*self._named(i, value)) for i, value in zip(given.ids, given.values, strict=True)]
        return TokenLogprob(*self._named(token, given.chosen), top)

    def _named(self, token: int, logprob: float) -> tuple[str, float, list[int]]:
        raw = self._tokens.token_bytes(token)
        return raw.decode("utf-8", "replace"), max(logprob, UNLIKELY), list(raw)

    def _release(self, piece: Piece) -> None:
        while self._held and self._held[0][0] < self._shown:
            offset, logprob = self._held.popleft()
            piece.offsets.append(offset)
            piece.logprobs.append(logprob)
