"""What a caller can cause or must hear of; `api.middleware.error_responses` turns these into OpenAI-shaped bodies."""

from __future__ import annotations


class OpsinError(Exception):
    """Carries the HTTP status and the `type` and `code` that OpenAI's clients read. The message is for the caller."""

    status: int = 500
    type: str = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class BadRequest(OpsinError):
    """Of a param without a code of its own: its value is wrong."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code)
        if self.code is None and param is not None:
            self.code = "invalid_value"


class Unauthorized(OpsinError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotFound(OpsinError):
    status = 404
    type = "invalid_request_error"


class TooLarge(OpsinError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class Unavailable(OpsinError):
    """Loading, draining, saturated, or the engine has died: worth trying again."""

    status = 503
    type = "server_error"
    code = "unavailable"


class EngineFailed(OpsinError):
    """The engine could not finish this request. The message never holds what the engine was working on."""

    code = "engine_failed"


class StorageFailed(OpsinError):
    """What must last cannot be read or written: a full disk, a database or an object store that does not answer."""

    status = 503
    code = "storage_failed"


class BlobDamaged(OpsinError):
    """A stored file is missing, shorter than it was, or holds other bytes."""

    code = "blob_damaged"

    def __init__(self, digest: str, why: str) -> None:
        super().__init__(f"the stored file {digest} {why}")
        self.digest = digest


class ConfigError(Exception):
    """A command-line or model problem that stops `opsin serve` before it starts; one sentence for the operator."""


class BadOption(ConfigError):
    """What one option says does not go with the model or with another option. name: of it, with underscores."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
