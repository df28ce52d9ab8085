"""What leaves the storage: frozen records, and none of the database's own objects. Times are seconds since 1970."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from opsin_server.errors import BadRequest

NAME_CHARACTERS = 256
TENANT = "default"  # whose everything is, as long as keys have no owners

Item = TypeVar("Item")


@dataclass(frozen=True)
class Blob:
    """digest: SHA-256 of its bytes, in hexadecimal. name: the client's own for the file; no path is made of it."""

    digest: str
    size: int
    kind: str
    name: str
    created: float


@dataclass(frozen=True)
class StoredFile:
    """A file of a client. digest: of the blob with its bytes. name: the client's own; no path is made of it."""

    id: str
    purpose: str
    name: str
    digest: str
    size: int
    created: float
    expires: float | None


@dataclass(frozen=True)
class NewUpload:
    """size: bytes that all parts must have together. lasts: seconds for which the file lasts; None: until it is
    deleted."""

    purpose: str
    name: str
    size: int
    lasts: int | None = None


UploadStatus = Literal["pending", "completed", "cancelled", "expired"]


@dataclass(frozen=True)
class Upload:
    id: str
    purpose: str
    name: str
    size: int
    status: UploadStatus
    created: float
    expires: float
    file: StoredFile | None


@dataclass(frozen=True)
class UploadPart:
    id: str
    upload: str
    digest: str
    size: int
    created: float


JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
Level = Literal["info", "warn", "error"]


@dataclass(frozen=True)
class NewEvent:
    """data: JSON. metrics: whether the data are numbers of a step."""

    message: str
    level: Level = "info"
    data: Mapping[str, Any] | None = None
    metrics: bool = False


@dataclass(frozen=True)
class NewJob:
    """asked: what the request said, as JSON, with every default filled in; request: its digest. key: an
    Idempotency-Key. blobs: digests of the files that the job reads. owner: the data directory whose server runs it."""

    owner: str
    asked: Mapping[str, Any]
    request: str
    key: str | None
    blobs: tuple[str, ...]
    events: tuple[NewEvent, ...] = ()


@dataclass(frozen=True)
class Job:
    """resolved: the hyperparameters, once "auto" is none. model: what was made. estimated_finish: while it runs."""

    id: str
    status: JobStatus
    asked: Mapping[str, Any]
    resolved: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    trained_tokens: int | None
    model: str | None
    result_file: str | None
    created: float
    finished: float | None
    estimated_finish: float | None


@dataclass(frozen=True)
class JobEvent:
    id: str
    level: Level
    kind: Literal["message", "metrics"]
    message: str
    data: Mapping[str, Any] | None
    created: float


@dataclass(frozen=True)
class JobCheckpoint:
    id: str
    step: int
    model: str
    metrics: Mapping[str, Any]
    created: float


BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


@dataclass(frozen=True)
class NewBatch:
    """digest: of the input file's blob. metadata: pairs of text. output_lasts: seconds for which the files last that
    the batch makes; None: until they are deleted. seconds: until it expires."""

    owner: str
    endpoint: str
    input_file: str
    digest: str
    metadata: Mapping[str, str]
    output_lasts: int | None
    seconds: float


@dataclass(frozen=True)
class BatchFault:
    """line: of the input file; None: it is the file's."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class BatchResult:
    """What became of a line: its line of the output file, or of the error file if it failed; with the tokens that it
    took."""

    line: int
    data: str
    failed: bool
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class NewFile:
    """lasts: seconds; None: until it is deleted."""

    blob: Blob
    name: str
    purpose: str
    lasts: int | None


@dataclass(frozen=True)
class Batch:
    """digest: while it goes on. total: lines of the input file, once it is validated. times: when it came to each of
    its statuses."""

    tenant: str
    id: str
    status: BatchStatus
    endpoint: str
    input_file: str
    digest: str | None
    metadata: Mapping[str, str]
    output_lasts: int | None
    model: str | None
    total: int
    completed: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    errors: tuple[BatchFault, ...]
    output_file: str | None
    error_file: str | None
    times: Mapping[str, float]
    created: float
    expires: float


@dataclass(frozen=True)
class WebhookEndpoint:
    """secrets: what a delivery is signed with now, the newest first."""

    id: str
    name: str
    url: str
    event_types: tuple[str, ...]
    secrets: tuple[str, ...]
    created: float
    updated: float


@dataclass(frozen=True)
class WebhookDelivery:
    """An event for one endpoint. id: the same in every attempt, of which this is the `attempt`th."""

    tenant: str
    id: str
    endpoint: WebhookEndpoint
    type: str
    data: Mapping[str, Any]
    attempt: int
    created: float


AnswerKind = Literal["chat.completion", "response"]


@dataclass(frozen=True)
class NewAnswer:
    """answer: the object that the client got. said: the messages or items before it. All as JSON."""

    id: str
    kind: AnswerKind
    model: str
    answer: Mapping[str, Any]
    said: tuple[Mapping[str, Any], ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class StoredAnswer:
    id: str
    model: str
    answer: Mapping[str, Any]
    said: tuple[Mapping[str, Any], ...]
    metadata: Mapping[str, str]
    created: float


@dataclass(frozen=True)
class Page(Generic[Item]):
    """has_more: whether there are others behind the last one."""

    items: tuple[Item, ...]
    has_more: bool


@dataclass(frozen=True)
class SourceFile:
    sha256: str
    size: int


@dataclass(frozen=True)
class NewVersion:
    """An adapter's version before it has a number. digest and size: of the file that the engine reads. source: the
    files that it was made of, by their names. All are blobs of the tenant's already. origin: upload, path, or a job's
    id. base_shape: the digest of the names and shapes of the model that it fits. base_digest: the content digest of the
    model that it was trained on, where that is known."""

    digest: str
    size: int
    rank: int
    targets: tuple[str, ...]
    origin: str
    source: Mapping[str, SourceFile]
    base_shape: str
    base_digest: str | None = None
    pixel_budget: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterVersion:
    adapter: str
    version: int
    facts: NewVersion
    created: float


@dataclass(frozen=True)
class Adapter:
    """current_version: what its name alone means; None until a version is promoted."""

    name: str
    current_version: int | None
    pinned: bool
    created: float
    updated: float
    last_used: float | None


@dataclass(frozen=True)
class Alias:
    """kind base: the model itself. version None: the adapter's current one, whichever that is."""

    alias: str
    kind: Literal["base", "adapter"]
    adapter: str | None
    version: int | None
    created: float
    updated: float


def checked_name(name: str, what: str, param: str | None = None) -> str:
    """A name that both databases can hold and a terminal can show. param: of a request, where it comes from one. Raises
    BadRequest."""
    if not 0 < len(name) <= NAME_CHARACTERS:
        raise BadRequest(f"{what} has {len(name)} characters; it must have 1 to {NAME_CHARACTERS}", param=param)
    if bad := next((c for c in name if unicodedata.category(c) in ("Cc", "Cs")), None):
        raise BadRequest(f"{what} has the control character U+{ord(bad):04X}", param=param)
    return name
