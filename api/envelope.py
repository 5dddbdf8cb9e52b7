"""The one error envelope, as sent and as documented, and the other shapes that routes share."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from starlette.responses import Response

from engine.frozen import Literally

T = TypeVar("T")


class Wire(BaseModel):
    """What goes over the wire; refuses unknown fields when it comes in."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Body(Wire, Literally):
    """What a request has as its body."""


def absent(value: object) -> bool:
    """For fields that are left out where there is nothing to say."""
    return value is None


class ProblemBody(Wire):
    """One of several reasons: where in a dataset or a request, and what to do about it."""

    line: int | None = None
    field: str | None = None
    message: str
    code: str | None = None


class ErrorBody(Wire):
    """What is wrong, where, and what to do next. `problems` has the first 20 of many."""

    message: str
    type: str
    param: str | None
    code: str
    problems: tuple[ProblemBody, ...] | None = Field(None, exclude_if=absent)
    total_problems: int | None = Field(None, exclude_if=absent)


REFUSAL: JsonDict = {
    "error": {
        "message": "rank 512 is above this server's limit 64; lower `peft.r`.",
        "type": "invalid_request_error",
        "param": "peft.r",
        "code": "rank_too_high",
    }
}


class Envelope(Wire):
    """Every answer with a status of 400 or above."""

    model_config = ConfigDict(json_schema_extra={"examples": [REFUSAL]})

    error: ErrorBody


def json_answer(content: Wire) -> Response:
    """For routes that choose between JSON and a stream. What is not finite becomes null."""
    return Response(content.model_dump_json(), media_type="application/json")


class ListOf(Wire, Generic[T]):
    """A page, newest first unless said otherwise. `after` of the next one is the last id here."""

    object: Literal["list"] = "list"
    data: tuple[T, ...]
    has_more: bool = False


class Deleted(Wire):
    """The answer to a DELETE."""

    id: str
    object: str
    deleted: Literal[True] = True


WHAT = {
    400: "The request could not be read",
    401: "No valid API key",
    403: "The API key lacks the scope that this needs",
    404: "No such id for this tenant",
    408: "The body came too slowly",
    409: "The object is not in a state that allows this",
    413: "The body is too large",
    415: "The body is of a type that this route does not read",
    422: "The request was read and cannot be done as asked, with every reason",
    429: "Too many at once, or too much in a time; see Retry-After",
    500: "A fault of the service",
    502: "The inference server answered with nonsense",
    503: "A part of the service does not answer; see Retry-After",
}


EDGE = (400, 408, 413, 415, 500)  # before a route is reached, or whatever happens in it


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented error answers of a route, beside those that every route has."""
    return _documented(*EDGE, 401, 403, 422, 429, 503, *statuses)


def open_refusals() -> dict[int | str, dict[str, Any]]:
    """Those of a route that asks for no key and takes nothing."""
    return _documented(*EDGE)


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": Envelope, "description": WHAT[status]} for status in sorted({*statuses})
    }
