"""A conversation and its decoded pictures and videos to all that the engine needs of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec import (
    I32,
    U8,
    Architecture,
    Clip,
    Expanded,
    ModelFiles,
    ModelSpec,
    Span,
    SpecError,
    TakesVideos,
    VideoPlan,
    VideoSource,
    VisualItem,
)
from opsin_server.config import EngineConfig
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.text.answer_frame import AnswerFrame, answer_frame
from opsin_server.text.answer_labels import Bools, answer_labels
from opsin_server.text.conversation import (
    ImagePart,
    Message,
    TextPart,
    VideoPart,
    image_parts,
    video_parts,
    visual_parts,
)
from opsin_server.text.end_tokens import answer_ends
from opsin_server.text.image_digest import image_digest, video_digest
from opsin_server.text.merge_turns import merge_answers
from opsin_server.text.plain_text import A_VIDEO, AN_IMAGE, ConversationEncoder, LostMarkerError
from opsin_server.text.prompt_options import PLAIN, PromptOptions
from opsin_server.text.reasoning import TAIL
from opsin_server.text.shown_visuals import check_results, lost_in_results, shown
from opsin_server.text.template import read_chat_template
from opsin_server.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """ids I32 [T], placeholders at full length; positions I32 [A, T]; delta as of `Architecture.positions`."""

    ids: I32
    positions: I32
    delta: int
    spans: tuple[Span, ...]
    items: tuple[VisualItem, ...]  # their digests set
    visible: I32 | None = None  # I32 [T, 2], as of Expanded


@dataclass(frozen=True)
class Labelled:
    """A whole conversation. labels bool [T]: tokens that are to be learned; never the first, never an image's. remarks:
    as of `AnswerLabels`."""

    prompt: Prompt
    labels: Bools
    remarks: tuple[str, ...]


class PromptEncoder:
    """Holds nothing of a request: threads may share one. Raises SpecError for a model that it cannot prompt.

    ends: the ids that end an answer. reasoning: how thoughts stand in one, where the template knows of any.
    """

    def __init__(self, files: ModelFiles, architecture: Architecture, spec: ModelSpec) -> None:
        guard = () if spec.image_token is None else (spec.image_token,)
        self.tokenizer = Tokenizer(files.directory, files.tokenizer_config, guard)
        self.template = read_chat_template(files, architecture, self.tokenizer.names)
        self.ends = answer_ends(spec, self.tokenizer, self.template)
        self.reasoning = self.template.reasoning
        self._architecture = architecture
        self.spec = spec
        self.vocabulary = spec.decoder.vocab  # tokens that can be drawn
        self._conversation = ConversationEncoder(self.tokenizer, self.template, opens=spec.vision is not None)
        self._check_template()
        self.takes_images = spec.image_token is not None and shown(self._conversation, spec.image_token, AN_IMAGE)
        self._no_video = self._why_no_video()
        self.takes_videos = not self._no_video
        self._lost_in_results = self._lost_in_results_of_tools()

    def check(self, messages: Sequence[Message]) -> None:
        """What can be refused before any image is fetched."""
        parts = image_parts(messages)
        if parts and not self.takes_images:
            why = "has no vision" if self.spec.vision is None else "has a chat template without images"
            raise BadRequest(f"this model {why}: it takes text only", param=parts[0].param)
        image = self.spec.image
        for part in parts:
            if part.demanded and image is not None and not image.resizable:
                raise BadRequest(f"max_pixels: {self.spec.family} gives every image one size", param=part.param)
        if self._no_video and (videos := video_parts(messages)):
            raise BadRequest(
                f"this model takes no videos: {self._no_video}", param=videos[0].param, code="unsupported_video"
            )
        check_results(messages, self._lost_in_results)

    def text_ids(
        self, messages: Sequence[Message], continue_final: bool = False, options: PromptOptions = PLAIN
    ) -> list[int]:
        """The rendered conversation, each image and each video one placeholder. Raises BadRequest.

        continue_final: the last message is the assistant's, and what is generated goes on where its text ends.
        """
        self.check(messages)
        return self._conversation.ids(messages, continue_final, options)

    def encode(
        self,
        messages: Sequence[Message],
        visuals: Sequence[U8 | Clip],
        continue_final: bool = False,
        options: PromptOptions = PLAIN,
    ) -> Prompt:
        """visuals: images, U8 [H, W, 3], RGB, and videos, in the order of `visual_parts(messages)`. continue_final: as
        of `text_ids`.

        Raises BadRequest.
        """
        return self._prompt(self.text_ids(messages, continue_final, options), messages, visuals)

    def plan_video(self, source: VideoSource, part: VideoPart) -> VideoPlan:
        """Which frames of a video are taken, once it is known what there is. Raises BadRequest."""
        assert isinstance(self._architecture, TakesVideos)
        try:
            return self._architecture.plan_video(source, self.spec, part.budget)
        except SpecError as error:
            raise BadRequest(str(error), param=part.where(error.option), code="invalid_video") from error

    def of_ids(self, ids: Sequence[int], param: str) -> Prompt:
        """A prompt of ids that no template has written, without pictures. Raises BadRequest."""
        if not ids:
            raise BadRequest("this text has no tokens", param=param)
        if (largest := max(ids)) >= self.spec.decoder.embeddings:
            count = self.spec.decoder.embeddings
            raise BadRequest(f"there is no token {largest}; this model's are 0 to {count - 1}", param=param)
        try:
            return self._prompt(ids, (), ())
        except BadRequest as error:
            picture = self.spec.image_token
            why = f"token {picture} stands for a picture, and token ids bring none: send pictures as content parts"
            raise BadRequest(why if picture in ids else error.message, param=param) from error

    def encode_labelled(
        self, messages: Sequence[Message], images: Sequence[U8], learned: Sequence[bool], everything: bool = False
    ) -> Labelled:
        """The conversation as it stands, without the head of a next answer, and which of its tokens are to be learned.

        images: as of `encode`. learned: of each message, whether it is; only the assistant's may be. everything: all
        tokens are, but for images and for what the assistant says where that is not learned. Raises BadRequest, also
        where nothing is left to learn.
        """
        if len(learned) != len(messages):
            raise ValueError(f"{len(learned)} answers to what is learned, for {len(messages)} messages")
        self.check(messages)
        if self.template.template_format.merges:
            messages, learned = merge_answers(messages, learned)
        located = self._conversation.located_ids(messages)
        found = answer_labels(located, messages, learned, self.frame)
        labels = ~found.unlearned if everything else found.learned
        prompt = self._prompt(located.ids, messages, images)
        labels = self._expanded_labels(labels, located.ids, prompt)
        labels[0] = False
        if not labels.any():
            raise BadRequest("the conversation holds nothing to be learned", param="messages")
        return Labelled(prompt, labels, found.remarks)

    @cached_property
    def frame(self) -> AnswerFrame:
        """What the template writes around an answer."""
        return answer_frame(self.tokenizer, self.template, self.ends)

    def _prompt(self, ids: Sequence[int], messages: Sequence[Message], visuals: Sequence[U8 | Clip]) -> Prompt:
        parts = visual_parts(messages)
        if len(parts) != len(visuals):
            raise ValueError(f"{len(visuals)} images and videos for {len(parts)} parts")
        items = tuple(self._item(part, visual) for part, visual in zip(parts, visuals, strict=True))
        try:
            expanded = self._architecture.expand(ids, items, self.spec, self.tokenizer.encode)
            positions, delta = self._architecture.positions(expanded, items, self.spec)
        except SpecError as error:
            raise BadRequest(str(error), param=parts[0].param if parts else "messages") from error
        self._check_ids(expanded)
        return Prompt(expanded.ids, positions, delta, expanded.spans, items, expanded.visible)

    def _expanded_labels(self, labels: Bools, ids: Sequence[int], prompt: Prompt) -> Bools:
        """Of the prompt's ids, by those of the ids that hold one placeholder an image. Tokens of images have none."""
        is_text = np.ones(len(prompt.ids), bool)
        for span in prompt.spans:
            is_text[span.start : span.start + span.length] = False
        written = np.asarray(ids, np.int32)
        kept = written != (-1 if self.spec.image_token is None else self.spec.image_token)
        if not np.array_equal(prompt.ids[is_text], written[kept]):
            raise OpsinError(f"{self.spec.family} writes more around images than labels can follow")
        out = np.zeros(len(prompt.ids), bool)
        out[is_text] = labels[kept]
        return out

    def thinks_already(self, prompt: Prompt) -> bool:
        """Whether a prompt ends within thoughts, which the answer goes on with."""
        if self.reasoning is None:
            return False
        tail = b"".join(map(self.tokenizer.token_bytes, prompt.ids[-TAIL:].tolist())).decode("utf-8", "replace")
        return tail.rfind(self.reasoning.begin) > tail.rfind(self.reasoning.end)

    def _item(self, part: ImagePart | VideoPart, visual: U8 | Clip) -> VisualItem:
        if isinstance(part, ImagePart):
            assert not isinstance(visual, Clip)
            return self.visual_item(part, visual)
        assert isinstance(visual, Clip)
        assert isinstance(self._architecture, TakesVideos)
        item = self._architecture.preprocess_video(visual, self.spec)
        return replace(item, digest=video_digest(visual, self.spec))

    def visual_item(self, part: ImagePart, image: U8) -> VisualItem:
        """One picture as the tower takes it, with its digest. Raises BadRequest."""
        try:
            (item,) = self._architecture.preprocess([image], self.spec, part.budget)
        except SpecError as error:
            raise BadRequest(str(error), param=part.param) from error
        return replace(item, digest=image_digest(image, self.spec, part.budget))

    def _check_ids(self, expanded: Expanded) -> None:
        if len(expanded.ids) == 0:
            raise BadRequest("the conversation renders to an empty prompt", param="messages")
        if (largest := int(np.max(expanded.ids))) >= self.spec.decoder.embeddings:
            what = f"token {largest} ({self.tokenizer.token_text(largest)!r})"
            raise BadRequest(
                f"{what} is outside of the model's {self.spec.decoder.embeddings} embeddings", param="messages"
            )

    def _check_template(self) -> None:
        try:
            self._conversation.ids([Message("user", (TextPart("7301"),))])
        except LostMarkerError as error:
            raise SpecError(error.message) from error
        except BadRequest:  # a template may want more than one turn
            return

    def _why_no_video(self) -> str:
        """Why the model takes none; empty where it does."""
        token = self.spec.video_token
        if token is None or not isinstance(self._architecture, TakesVideos):
            return self.spec.no_video or f"{self.spec.family} has none"
        if token not in self.tokenizer.marker_ids:
            return f"tokenizer.json has no token of its own for the id {token}"
        return "" if shown(self._conversation, token, A_VIDEO) else "its chat template shows none"

    def _lost_in_results_of_tools(self) -> list[ImagePart | VideoPart]:
        taken: list[tuple[int | None, ImagePart | VideoPart]] = [
            (self.spec.image_token if self.takes_images else None, AN_IMAGE),
            (None if self._no_video else self.spec.video_token, A_VIDEO),
        ]
        return [part for token, part in taken if token is not None and lost_in_results(self._conversation, token, part)]


def read_encoder(config: EngineConfig) -> PromptEncoder:
    """The encoder of a model directory. Raises SpecError when its tokenizer or chat template cannot be used."""
    opened = open_model(Path(config.model), config.plugins, config.family_options(), config.tower_file())
    try:
        return PromptEncoder(opened.files, opened.architecture, opened.spec)
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(str(error)) from error
