"""THE table from exceptions to HTTP, and the envelope made from it. Nothing else knows both.

ApiError
├── Unauthenticated        no valid key
├── Forbidden              a valid key without the scope of the route
├── TooManyRequests        more calls a minute than the tenant, or an address, may make
├── BodyTooLarge           above the cap of the route
├── BodyTooSlow            no bytes for too long
├── BodyCut                the client went away in the middle
├── BodyUnreadable         not what the content type says
├── MediaTypeUnsupported   a type or an encoding that the route does not read
├── Invalid                a parameter that no schema could refuse
├── ModelNotFound          no base and no adapter of the tenant by this name
├── CannotGenerate         an adapter that scores, asked for text
├── CannotScore            an adapter that generates, asked for scores
├── NothingScores          a generator that has no scores
├── WebhookFailed          a webhook's endpoint that a test event did not reach
├── GeneratorUnavailable   the inference server does not answer
├── GeneratorFailed        it answered with something that is no answer
└── GeneratorRefused       it refused, with a status and an envelope of its own
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adapters.errors import AdapterCorrupt, AdapterInvalid, AdapterMissing
from api.envelope import Envelope, ErrorBody, ProblemBody
from api.fields import field_path
from engine.bases import BaseNotAllowed, BaseUnusable
from engine.estimate.errors import EstimateImpossible
from engine.graders import GradingFault
from engine.judging import Unscorable
from engine.rows import DatasetInvalid
from engine.template import RenderError, TemplateUnsupported
from jobs import errors as jobs
from jobs.checkpoints import CheckpointCorrupt
from storage.objects import ObjectExists, ObjectNotFound, StorageError, StorageUnavailable

SHOWN = 20
RETRY_AFTER_S = {429: 10, 503: 2}


class ApiError(Exception):
    """Something that this room refuses by itself."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Unauthenticated(ApiError):
    pass


class Forbidden(ApiError):
    pass


class TooManyRequests(ApiError):
    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BodyTooLarge(ApiError):
    pass


class BodyTooSlow(ApiError):
    pass


class BodyCut(ApiError):
    pass


class BodyUnreadable(ApiError):
    pass


class MediaTypeUnsupported(ApiError):
    pass


class Invalid(ApiError):
    pass


class ModelNotFound(ApiError):
    pass


class CannotGenerate(ApiError):
    pass


class CannotScore(ApiError):
    pass


class NothingScores(ApiError):
    pass


class WebhookFailed(ApiError):
    pass


class GeneratorUnavailable(ApiError):
    pass


class GeneratorFailed(ApiError):
    pass


class GeneratorRefused(ApiError):
    """Carries the inference server's own status and envelope."""

    def __init__(self, status: int, body: ErrorBody) -> None:
        super().__init__(body.message, param=body.param)
        self.status, self.body = status, body


@dataclass(frozen=True)
class Row:
    """How an exception is answered. Its own `code` goes before this one, `text` before its own."""

    status: int
    code: str
    text: str | None = None


TABLE: dict[type[Exception], Row] = {
    Unauthenticated: Row(401, "unauthenticated"),
    Forbidden: Row(403, "scope_missing"),
    TooManyRequests: Row(429, "rate_limited"),
    BodyTooLarge: Row(413, "body_too_large"),
    BodyTooSlow: Row(408, "body_too_slow"),
    BodyCut: Row(400, "body_cut"),
    BodyUnreadable: Row(400, "body_unreadable"),
    MediaTypeUnsupported: Row(415, "media_type_unsupported"),
    Invalid: Row(422, "invalid_request"),
    ModelNotFound: Row(404, "model_not_found"),
    CannotGenerate: Row(422, "adapter_cannot_generate"),
    CannotScore: Row(422, "adapter_cannot_score"),
    NothingScores: Row(422, "generator_cannot_score"),
    WebhookFailed: Row(422, "webhook_failed"),
    GeneratorUnavailable: Row(503, "generator_unavailable"),
    GeneratorFailed: Row(502, "generator_failed"),
    GeneratorRefused: Row(422, "generator_refused"),
    jobs.NotFound: Row(404, "not_found"),
    jobs.Conflict: Row(409, "conflict"),
    jobs.InUse: Row(409, "in_use"),
    jobs.IdempotencyReused: Row(422, "idempotency_key_reused"),
    jobs.QuotaExceeded: Row(429, "quota_exceeded"),
    jobs.SpecInvalid: Row(422, "spec_invalid"),
    jobs.LeaseLost: Row(409, "lease_lost"),
    jobs.StoreUnavailable: Row(503, "database_unavailable"),
    DatasetInvalid: Row(422, "dataset_invalid"),
    TemplateUnsupported: Row(422, "template_unsupported"),
    RenderError: Row(422, "render_invalid"),
    BaseNotAllowed: Row(422, "base_model_not_allowed"),
    BaseUnusable: Row(422, "base_model_unusable"),
    EstimateImpossible: Row(422, "estimate_impossible"),
    GradingFault: Row(422, "grading_failed"),
    Unscorable: Row(422, "reward_input_invalid"),
    AdapterInvalid: Row(422, "adapter_invalid"),
    AdapterMissing: Row(404, "not_found"),
    AdapterCorrupt: Row(500, "adapter_corrupt"),
    CheckpointCorrupt: Row(500, "checkpoint_corrupt"),
    # The store's own texts name objects, and with them tenants.
    ObjectNotFound: Row(500, "object_missing", "A stored file is missing; tell the operator."),
    ObjectExists: Row(409, "object_exists", "This was stored already."),
    StorageUnavailable: Row(503, "storage_unavailable", "Storage does not answer; try again soon."),
    StorageError: Row(500, "storage_failed", "Storage failed; tell the operator."),
}
UNHANDLED = Row(500, "internal_error")
OF_ROUTING = {400: "body_unreadable", 404: "route_not_found", 405: "method_not_allowed"}


def row_of(error: type[Exception]) -> Row | None:
    """An exception's own row, or that of its nearest listed ancestor."""
    return next((TABLE[kind] for kind in error.__mro__ if kind in TABLE), None)


def answer(error: Exception, request_id: str) -> Response:
    """The answer to whatever came out of a route."""
    status, body = _told(error, request_id)
    content = json.dumps(Envelope(error=body).model_dump())  # ASCII: an echo may be no UTF-8
    headers = error.headers if isinstance(error, HTTPException) else None
    response = Response(content, status, headers, media_type="application/json")
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if status == 408:
        response.headers["connection"] = "close"  # who sends a byte a minute gets no second try
    if status == 409 or not getattr(error, "passes", True):
        response.headers["x-should-retry"] = "false"  # SDKs repeat 409 and 429 unless told
    if status in RETRY_AFTER_S:
        wait_s = getattr(error, "retry_after_s", None) or RETRY_AFTER_S[status]
        response.headers["retry-after"] = str(math.ceil(wait_s))
    return response


def body_of(error: ApiError) -> ErrorBody:
    """For an answer that has begun already: the envelope's content alone."""
    return _told(error, "")[1]


def _told(error: Exception, request_id: str) -> tuple[int, ErrorBody]:
    if isinstance(error, RequestValidationError):
        return _of_validation(error.errors())
    if isinstance(error, HTTPException):
        status = error.status_code
        code = OF_ROUTING.get(status, "invalid_request")
        text = f"{error.detail}: see /docs for what this server takes."
        return status, _body(status, code, text)
    if isinstance(error, GeneratorRefused):
        return error.status, error.body
    if row := row_of(type(error)):
        return row.status, _of_ours(error, row)
    text = f"A fault of the service; tell its operator this request id: {request_id}."
    return UNHANDLED.status, _body(UNHANDLED.status, UNHANDLED.code, text)


def type_of(status: int) -> str:
    """The error's class, as SDKs know it."""
    names = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        409: "conflict_error",
        429: "rate_limit_error",
    }
    return names.get(status, "server_error" if status >= 500 else "invalid_request_error")


def _body(
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    problems: Sequence[ProblemBody] | None = None,
    total: int | None = None,
) -> ErrorBody:
    shown = None if problems is None else tuple(problems[:SHOWN])
    return ErrorBody(
        message=message,
        type=type_of(status),
        param=param,
        code=code,
        problems=shown,
        total_problems=total,
    )


def _of_ours(error: Exception, row: Row) -> ErrorBody:
    if isinstance(error, DatasetInvalid):
        problems = [ProblemBody(**problem.model_dump()) for problem in error.problems]
        return _body(row.status, row.code, str(error), problems[0].field, problems, error.total)
    if isinstance(error, jobs.SpecInvalid):
        problems = [
            ProblemBody(field=p.param, message=p.message, code=p.code) for p in error.problems
        ]
        first = error.problems[0]
        return _body(row.status, first.code, str(error), first.param, problems, len(error.problems))
    code = getattr(error, "code", None) or row.code
    param = getattr(error, "param", None)
    if isinstance(error, BaseNotAllowed | BaseUnusable):
        param = "base_model"
    return _body(row.status, code, row.text or str(error), param)


def _of_validation(errors: Sequence[Any]) -> tuple[int, ErrorBody]:
    """All problems of a request that its schema refuses."""
    errors = [error for error in errors if not _follows(error, errors)]
    kinds = {(error["type"], tuple(error["loc"])[:1]) for error in errors}
    if any(kind == "json_invalid" for kind, _ in kinds):
        detail = errors[0].get("ctx", {}).get("error", "")
        text = f"The body is not JSON ({detail}); check it with a JSON validator."
        return 400, _body(400, "malformed_json", text)
    if [tuple(error["loc"]) for error in errors] == [("body",)] and errors[0]["type"] in (
        "model_attributes_type",
        "dict_type",
    ):
        text = "The body must be a JSON object, sent with Content-Type: application/json."
        return 422, _body(422, "invalid_request", text)
    problems = [
        ProblemBody(
            field=field_path(error["loc"], error["type"]),
            message=plain(error),
            code=str(error["type"]),
        )
        for error in errors
    ]
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = f"{first.field}: {first.message}{more}"
    unknown = all(problem.code == "extra_forbidden" for problem in problems)
    code = "unknown_field" if unknown else "invalid_request"
    return 422, _body(422, code, message, first.field, problems, len(problems))


def _follows(error: Any, errors: Sequence[Any]) -> bool:
    """A list is called too short, too, where an item of it is not valid."""
    place = tuple(error["loc"])
    inside = (tuple(other["loc"])[: len(place)] == place for other in errors if other is not error)
    return error["type"] == "too_short" and any(inside)


# What JSON calls the things that pydantic has Python's names for.
_SHAPES = {
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_COUNTS = {"too_short": ("least", "min_length"), "too_long": ("most", "max_length")}


def plain(error: Any) -> str:
    """What is wrong with a field, in our words, of an error of pydantic's."""
    if error["type"] == "extra_forbidden":
        return "There is no such field; remove it or check its spelling."
    if error["type"] == "missing":
        return "This field is needed."
    if error["type"] == "union_tag_not_found":
        return "This field is needed: it says which one is meant."
    if error["type"] == "union_tag_invalid":
        tag, known = error["ctx"]["tag"], error["ctx"]["expected_tags"]
        return f"{tag!r} is not among what this server takes: {known}."
    if shape := _SHAPES.get(error["type"]):
        return f"This must be {shape}."
    if error["type"] in _COUNTS:
        bound, limit = _COUNTS[error["type"]]
        given = error["ctx"]["actual_length"]
        return f"This must have at {bound} {error['ctx'][limit]}, not {given}."
    text: str = error["msg"]
    return f"{text.removeprefix('Value error, ').rstrip('.')}."
