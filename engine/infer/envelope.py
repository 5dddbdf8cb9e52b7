"""The error envelope, {"error": {message, type, param, code}}, and the status of each error."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from engine.infer.errors import (
    AdapterNotFound,
    AdapterRefused,
    AdapterUnavailable,
    GenerationFailed,
    QueueFull,
    RequestInvalid,
)

_UNAVAILABLE_RETRY_S = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as the client sees it."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        kinds = {429: "rate_limit_error", 404: "not_found_error"}
        kind = kinds.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        return JSONResponse(self.body(), self.status, headers)


def problem_of(error: Exception) -> Problem:
    """What to tell the client of an error; nothing of the inside when it is not one of ours."""
    message = str(error)
    match error:
        case AdapterNotFound():
            return Problem(404, "model_not_found", message, "model")
        case AdapterRefused():
            return Problem(422, error.code, message, "model")
        case AdapterUnavailable():
            return Problem(503, "adapter_unavailable", message, "model", _UNAVAILABLE_RETRY_S)
        case RequestInvalid():
            return Problem(error.status, error.code, message, error.param)
        case QueueFull():
            return Problem(429, "queue_full", message, None, error.retry_after_s)
        case GenerationFailed(code="server_stopping"):
            return Problem(503, error.code, message, None, _UNAVAILABLE_RETRY_S)
        case GenerationFailed():
            return Problem(500, error.code, message)
        case HTTPException():
            code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
            return Problem(error.status_code, code, f"{error.detail}.")
    return Problem(500, "internal_error", "The server failed on this request; try again.")
