"""The request that a job comes from: what log lines and traces of its attempts go by."""

import re

import structlog
from pydantic import BaseModel, ConfigDict

from jobs.tracing import traceparent

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Origin(BaseModel):
    """`traceparent` is W3C's, of the span that queued the job; None where nothing is traced."""

    model_config = ConfigDict(frozen=True)

    request_id: str | None = None
    traceparent: str | None = None


def here() -> Origin:
    """What runs now, in this thread or task."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    return Origin(
        request_id=request_id if REQUEST_ID.fullmatch(str(request_id)) else None,
        traceparent=traceparent(),
    )
