"""Bodies of the routes of files and uploads; and what these answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field, field_validator

from opsin_server.chat.fields import WHOLE, Ignored, Strict, unsupported
from opsin_server.storage.records import StoredFile, Upload, UploadPart, UploadStatus

# Nothing here acts on files of the last two: they are kept, and given back.
PURPOSES = ("fine-tune", "batch", "vision", "user_data", "assistants", "evals")
LASTS = Annotated[int, Field(ge=3600, le=30 * 24 * 3600), WHOLE]


class ExpiresAfter(Strict):
    anchor: Literal["created_at"]
    seconds: LASTS


class CreateUpload(Strict):
    bytes: Annotated[int, Field(ge=0, lt=2**63, description="of the whole file, which is checked at its end"), WHOLE]
    filename: Annotated[str, Field(min_length=1, max_length=256)]
    mime_type: Ignored = None
    purpose: Annotated[str, Field(description=" · ".join(f"`{purpose}`" for purpose in PURPOSES))]
    expires_after: ExpiresAfter | None = None

    @field_validator("purpose")
    @classmethod
    def _known(cls, purpose: str) -> str:
        return known_purpose(purpose)


class CheckFile(Strict):
    lines: Annotated[int, Field(ge=1, le=2000, description="of the file, that are read; 200"), WHOLE] = 200
    rows: Annotated[int, Field(ge=0, le=50, description="that come back, of those that are right; 20"), WHOLE] = 20
    opsin: Annotated[dict[str, Any] | None, Field(description="options of a job that would be trained on it")] = None


class CompleteUpload(Strict):
    part_ids: Annotated[list[str], Field(max_length=10_000, description="in the order of the file")]
    md5: Annotated[str | None, Field(description="of the whole file, in hexadecimal")] = None


def known_purpose(purpose: str) -> str:
    """For a validator."""
    if purpose not in PURPOSES:
        raise unsupported(purpose, f"'purpose' must be one of {', '.join(PURPOSES)}")
    return purpose


class FileObject(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class DeletedFile(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class UploadObject(TypedDict):
    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: UploadStatus
    expires_at: int
    file: FileObject | None


class UploadPartObject(TypedDict):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


def described_file(file: StoredFile) -> FileObject:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created),
        "expires_at": None if file.expires is None else int(file.expires),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def described_upload(upload: Upload) -> UploadObject:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.size,
        "created_at": int(upload.created),
        "filename": upload.name,
        "purpose": upload.purpose,
        "status": upload.status,
        "expires_at": int(upload.expires),
        "file": None if upload.file is None else described_file(upload.file),
    }


def described_part(part: UploadPart) -> UploadPartObject:
    return {"id": part.id, "object": "upload.part", "created_at": int(part.created), "upload_id": part.upload}
