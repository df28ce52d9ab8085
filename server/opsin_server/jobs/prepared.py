"""A training file made ready: rows by their index, the images behind them, and what is known of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from opsin_plugins.spec import U8, ImageBudget
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.ipc.training_rows import Pixels, TrainingRow
from opsin_server.jobs.encode_row import ImageOrigin, RowEncoder
from opsin_server.jobs.faults import Fault
from opsin_server.jobs.image_store import ImageStore
from opsin_server.jobs.options import DataOptions
from opsin_server.jobs.row_file import RowReader
from opsin_server.media_limits import MediaLimits
from opsin_server.text.conversation import ImagePart
from opsin_server.text.encode_prompt import PromptEncoder

FORMAT = 1  # of the folder; another one is prepared anew
MANIFEST, ROWS, FACTS, IMAGES = "manifest.json", "rows.msgpack", "facts.npz", "images"
Kind = Literal["supervised", "preference"]


class Remark(msgspec.Struct, frozen=True):
    """What is true of `rows` rows, and of `line` first."""

    message: str
    rows: int
    line: int


class Report(msgspec.Struct, frozen=True):
    """What was found in a training file. rows: that are trained on. left_out: too long, by the policy. truncated: of
    the rows, those that were cut. skipped: wrong ones. faults: the first of fault_count. tokens, labels, visual_tokens:
    of all rows; the longest row has longest. lengths: pairs of a number of tokens, and how many rows have no more, and
    more than the pair before says. images: different ones; image_uses: in all rows. unread_from: the line at which the
    time was over; None: all lines were read."""

    kind: Kind
    rows: int
    tokens: int
    labels: int
    visual_tokens: int
    longest: int
    lengths: tuple[tuple[int, int], ...]
    images: int
    image_uses: int
    image_rows: int
    left_out: int
    truncated: int
    skipped: int
    fault_count: int
    faults: tuple[Fault, ...]
    remarks: tuple[Remark, ...]
    unread_from: int | None = None

    def surprises(self, shown: int) -> list[str]:
        """What an owner should know of a file that is trained on: rows that were left out, and what is true of some.
        shown: wrong rows that are named."""
        found = [f"{remark.rows:,} rows: {remark.message}" for remark in self.remarks]
        if self.skipped:
            found.append(f"{self.skipped:,} rows are wrong, and left out")
            found += [str(fault) for fault in self.faults[:shown]]
            if self.fault_count > shown:
                found.append(f"{self.fault_count - shown:,} more faults")
        return found


class Origin(msgspec.Struct, frozen=True):
    """Of an image that rows name by `digest`: the stored file and the budget (see `ImageOrigin`). Digests are hex."""

    digest: str
    file: str
    max_pixels: int | None
    max_tokens: int | None


class Manifest(msgspec.Struct, frozen=True):
    """digest: SHA-256 of the file's content, the options and the model's version."""

    format: int
    digest: str
    file: str
    version: str
    options: DataOptions
    report: Report
    origins: tuple[Origin, ...]


class Facts(NamedTuple):
    """Of each row, for planning; of both together where a row is a preference. line: in the file. images: numbers into
    `Manifest.origins`, those of row i from image_starts[i] to image_starts[i + 1]. offsets: of the records."""

    line: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    visual_tokens: npt.NDArray[np.int64]
    image_starts: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


class Prepared:
    """Threads may share one."""

    def __init__(
        self, folder: Path, manifest: Manifest, facts: Facts, encoder: PromptEncoder, media: MediaLimits
    ) -> None:
        self.folder, self.manifest, self.facts = folder, manifest, facts
        self.digests = tuple(bytes.fromhex(origin.digest) for origin in manifest.origins)
        self._encoder = encoder
        self._rows = RowReader(folder / ROWS, facts.offsets)
        store = ImageStore(folder / IMAGES, media)
        self._images = RowEncoder(encoder, store, manifest.options, media)
        self._origins: Mapping[bytes, ImageOrigin] = {
            bytes.fromhex(o.digest): ImageOrigin(o.file, ImageBudget(o.max_pixels, o.max_tokens))
            for o in manifest.origins
        }

    def __len__(self) -> int:
        return self.manifest.report.rows

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def kind(self) -> Kind:
        return self.manifest.report.kind

    @property
    def report(self) -> Report:
        return self.manifest.report

    def row(self, index: int) -> TrainingRow:
        """Of a supervised file."""
        (row,) = self._read(index)
        return row

    def pair(self, index: int) -> tuple[TrainingRow, TrainingRow]:
        """Of a file of preferences: the preferred row, and the other."""
        preferred, non_preferred = self._read(index)
        return preferred, non_preferred

    def image_digests(self, index: int) -> tuple[bytes, ...]:
        """Those that a row names, each once."""
        start, end = self.facts.image_starts[index : index + 2]
        return tuple(self.digests[number] for number in self.facts.images[start:end])

    def pixels(self, digest: bytes) -> Pixels:
        """Of an item of the rows, made from its stored file. Raises OpsinError where that gives another picture."""
        origin = self._origins[digest]
        try:
            item = self._encoder.visual_item(ImagePart("", origin.budget, ""), self._images.picture(origin))
        except (BadRequest, OSError) as error:
            raise OpsinError(f"the stored image {origin.file} cannot be read: {error}") from error
        if item.digest != digest:
            raise OpsinError(f"the stored image {origin.file} gives {item.digest.hex()}, not {digest.hex()}")
        return Pixels(item.pixels, item.arrange)

    def picture(self, digest: bytes) -> U8:
        """What preprocessing was given for an item of the rows: RGB [H, W, 3]."""
        return self._images.picture(self._origins[digest])

    def close(self) -> None:
        self._rows.close()

    def _read(self, index: int) -> tuple[TrainingRow, ...]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._rows.read(index)


def open_prepared(folder: Path, encoder: PromptEncoder, media: MediaLimits | None = None) -> Prepared | None:
    """What was prepared in a folder; None: nothing, or nothing that was finished by this version."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    if manifest.format != FORMAT:
        return None
    with np.load(folder / FACTS, allow_pickle=False) as arrays:
        facts = Facts(**{name: arrays[name] for name in Facts._fields})
    if (folder / ROWS).stat().st_size != facts.offsets[-1]:  # (a machine that lost its power)
        return None
    return Prepared(folder, manifest, facts, encoder, media or MediaLimits())
