"""A row of a training file to what the trainer learns from, by the code that makes a chat's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from opsin_plugins.spec import U8, ImageBudget
from opsin_plugins.spec.visual_items import visible_images
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.ipc.messages import describe
from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.jobs.boxes import has_boxes, rescaled
from opsin_server.jobs.examples import TrainingExample, last_only
from opsin_server.jobs.image_store import ImageStore
from opsin_server.jobs.options import DataOptions
from opsin_server.jobs.resize import resized
from opsin_server.media.decode import decode
from opsin_server.media.load_images import Budget
from opsin_server.media_limits import MediaLimits
from opsin_server.text.conversation import ImagePart, Message, image_parts, texts
from opsin_server.text.encode_prompt import PromptEncoder

FAR_TOO_LONG = 4  # times what a context of the longest tokens could hold
BOXES_KEPT = "an image is made smaller and its row's text has boxes: absolute coordinates no longer fit (see 'boxes')"
BOXES_UNCLEAR = "the row's text has boxes and the row {count} images: which one they are of is not known"


@dataclass(frozen=True)
class ImageOrigin:
    """How a visual item is made again: the stored file, and the budget."""

    file: str
    budget: ImageBudget


@dataclass
class EncodedRow:
    """origins: of its items, by their digests."""

    row: TrainingRow
    origins: dict[bytes, ImageOrigin]
    remarks: set[str] = field(default_factory=set)


class RowEncoder:
    """Threads may share one."""

    def __init__(self, encoder: PromptEncoder, store: ImageStore, options: DataOptions, media: MediaLimits) -> None:
        self._encoder, self._store, self._options, self._media = encoder, store, options, media

    def encode(self, example: TrainingExample, answer_only: bool = False) -> EncodedRow:
        """answer_only: whatever the options say, what the example has as learned is. Raises BadRequest."""
        self._encoder.check(example.messages)
        self._check_length(example)
        parts = image_parts(example.messages)
        if len(parts) > self._media.max_images:
            raise BadRequest(
                f"the row has {len(parts)} images; the limit is {self._media.max_images} (--max-images)",
                param=parts[self._media.max_images].param,
            )
        budget = Budget(self._media)
        files = [self._file(part) for part in parts]
        pictures = [self._decoded(part, file, budget) for part, file in zip(parts, files, strict=True)]
        images = [self._resized(picture) for picture in pictures]
        remarks: set[str] = set()
        messages = self._with_boxes(example.messages, parts, pictures, images, remarks)
        train_on = "assistant" if answer_only else self._options.train_on
        learned = last_only(example).learned if train_on == "last" else example.learned
        made = self._encoder.encode_labelled(messages, images, learned, everything=train_on == "all")
        prompt = made.prompt
        row = TrainingRow(
            prompt.ids,
            prompt.positions,
            made.labels,
            prompt.spans,
            describe(prompt.items),
            visible_images(prompt.visible),
        )
        origins = {
            item.digest: ImageOrigin(file, part.budget)
            for item, file, part in zip(prompt.items, files, parts, strict=True)
        }
        return EncodedRow(row, origins, remarks | set(made.remarks))

    def _check_length(self, example: TrainingExample) -> None:
        """Before it is tokenized (seconds a megabyte). What is nearer to the limit is for the policy of long rows."""
        size = sum(map(len, texts(example.messages)))
        most = FAR_TOO_LONG * self._encoder.spec.max_positions * self._encoder.tokenizer.longest_token
        if size > most:
            raise BadRequest(f"the row's texts have {size:,} characters; no context of this model holds {most:,}")

    def picture(self, origin: ImageOrigin) -> U8:
        """What preprocessing is given."""
        return self._resized(decode(self._store.still(origin.file)))

    def _file(self, part: ImagePart) -> str:
        try:
            return self._store.keep(part.source)
        except BadRequest as error:
            raise _placed(error, part) from None

    def _decoded(self, part: ImagePart, file: str, budget: Budget) -> U8:
        try:
            still = self._store.still(file)
            budget.charge(still)
            return decode(still)
        except BadRequest as error:
            raise _placed(error, part) from None

    def _resized(self, picture: U8) -> U8:
        assert self._encoder.spec.image is not None
        return resized(picture, self._options.images, self._encoder.spec.image)

    def _with_boxes(
        self,
        messages: Sequence[Message],
        parts: Sequence[ImagePart],
        pictures: Sequence[U8],
        images: Sequence[U8],
        remarks: set[str],
    ) -> Sequence[Message]:
        """The messages, with boxes as of the picture that the model sees. Raises BadRequest where that is asked for,
        and the row has several images."""
        if not parts or not has_boxes(messages):
            return messages
        if not self._options.images.boxes:
            if any(self._shrinks(*each) for each in zip(parts, pictures, images, strict=True)):
                remarks.add(BOXES_KEPT)
            return messages
        if len(parts) != 1:
            raise BadRequest(BOXES_UNCLEAR.format(count=len(parts)), param=parts[1].param)
        height, width = pictures[0].shape[:2]
        return rescaled(messages, (width, height), self._seen(parts[0], images[0]))

    def _seen(self, part: ImagePart, image: U8) -> tuple[int, int]:
        """Width and height of the picture whose patches the model sees, where the family resizes; else what
        preprocessing is given."""
        spec = self._encoder.spec.image
        assert spec is not None
        if spec.resize not in ("smart", "longest"):
            return image.shape[1], image.shape[0]
        _, rows, columns = self._encoder.visual_item(part, image).grid
        return columns * spec.patch, rows * spec.patch

    def _shrinks(self, part: ImagePart, picture: U8, image: U8) -> bool:
        """Whether it is made smaller by more than patches round it."""
        spec = self._encoder.spec.image
        assert spec is not None
        step = spec.patch * spec.merge
        width, height = self._seen(part, image)
        return picture.shape[1] - width >= step or picture.shape[0] - height >= step


def _placed(error: BadRequest, part: ImagePart) -> BadRequest:
    return BadRequest(error.message, param=part.param, code=error.code)


def one_line(error: OpsinError) -> str:
    """The sentence, with the place where it does not say it itself."""
    place = error.param
    return error.message if place is None or place in error.message else f"{place}: {error.message}"
