"""What vLLM wants said otherwise than Luthier's own inference server, and how it refuses."""

import hashlib
from typing import Any

from engine.completions import NEUTRAL

# vLLM's refusals have their status as `code`.
CODES = {
    400: "invalid_request",
    404: "model_not_found",
    422: "adapter_refused",
    429: "queue_full",
    503: "generator_unavailable",
}
TOO_LONG = "input_tokens"  # what vLLM calls the field of a prompt that its context does not hold


def completion_body(
    body: dict[str, Any], tenant_id: str, context_length: int | None
) -> dict[str, Any]:
    """A body of /v1/completions for vLLM, which then samples and stops as Luthier's server does.

    vLLM cuts `max_tokens` to the room that the prompt leaves, but refuses one above its context.
    The stop ids of the render contract are all there are: vLLM's own, of the base, are ignored. The
    salt keeps tenants from telling by time which prompts others have sent to the base.
    """
    salt = hashlib.sha256(tenant_id.encode()).hexdigest()
    most = min(body["max_tokens"], context_length or body["max_tokens"])
    return NEUTRAL | body | {"max_tokens": most, "ignore_eos": True, "cache_salt": salt}


def name_of(status: int, param: str | None) -> tuple[str | None, str]:
    """The field and the code of vLLM's refusal, as Luthier's own server names them."""
    if param == TOO_LONG:
        return "prompt", "context_length_exceeded"
    known = "generator_failed" if status >= 500 else "generator_refused"
    return param, CODES.get(status, known)
