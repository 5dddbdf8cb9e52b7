"""What the inference server refuses. Torch-free, so that whoever hands it `fetch` can raise these.

EngineError
├── AdapterNotFound      no such model or adapter
├── AdapterRefused       the adapter is there, but what it answers cannot be trusted
├── AdapterUnavailable   the adapter could not be fetched just now
├── RequestInvalid       the request cannot be served as it stands
├── QueueFull            more sequences wait than the operator allows
├── GenerationFailed     the model broke while it was generating
└── ModelUnusable        the base model's folder cannot be served
"""

from engine.errors import EngineError


class AdapterNotFound(EngineError):
    """No model by this name; `fetch` raises it for an unknown or deleted adapter."""

    def __init__(self, adapter_id: str) -> None:
        super().__init__(
            f"Model {adapter_id!r} does not exist; list what does with GET /v1/models."
        )
        self.adapter_id = adapter_id


class AdapterRefused(EngineError):
    """The adapter exists and must not be served; `code` says why, the message has the figures."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AdapterUnavailable(EngineError):
    """The adapter could not be fetched, for a reason that may pass."""


class RequestInvalid(EngineError):
    """The request cannot be served; `param` is the field to change."""

    def __init__(self, message: str, *, param: str | None, code: str, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class QueueFull(EngineError):
    """The waiting queue is at its bound; try again in `retry_after_s`."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(
            f"{waiting} sequences are waiting already; try again in {retry_after_s} seconds."
        )
        self.retry_after_s = retry_after_s


class GenerationFailed(EngineError):
    """A sequence ended before its time: the model failed or the server stops."""

    def __init__(self, message: str, *, code: str = "generation_failed") -> None:
        super().__init__(message)
        self.code = code


class ModelUnusable(EngineError):
    """A model folder that cannot be served; `code` is `model_needs_code` or `model_unusable`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
