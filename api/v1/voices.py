"""The `model` of OpenAI's routes: the name of a base, or the id of an adapter of the tenant."""

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from api.errors import ModelNotFound
from api.services import Services
from api.speaking import Voice, WeightedAdapter, voice_of
from engine.bases import BaseNotAllowed
from jobs.errors import NotFound


def voice_named(
    services: Services, tenant_id: str, model: str, several: Sequence[WeightedAdapter] | None
) -> Voice:
    """Raises ModelNotFound, and what `voice_of` does but NotFound of `model`."""
    base, adapter_id = (model, None) if model in services.bases.names else (None, model)
    try:
        if several is not None:  # on a base, which `model` then names
            return voice_of(services, tenant_id, model, None, several, "model")
        return voice_of(services, tenant_id, base, adapter_id, None, "model")
    except (NotFound, BaseNotAllowed) as error:
        missing = error.id if isinstance(error, NotFound) else model
        raise no_model(missing, "model" if missing == model else "adapters") from None


def no_model(id: str, param: str) -> ModelNotFound:
    """Says where the models are, in the same words for whatever is none of this tenant's."""
    return ModelNotFound(
        f"No model with id {id!r}. GET /v1/models has the bases and your fine-tuned ones; a "
        "checkpoint is one once POST /jobs/{id}/checkpoints/{checkpoint_id}/publish made it one.",
        param=param,
    )


def fingerprint(voice: Voice) -> str:
    """Changes with the files that answer: the base's, and the adapters' with their weights."""
    files = [[each["sha256"] for each in a.manifest["files"]] for a in voice.adapters]
    weights = [weight for _, weight in voice.weights or ()]
    content = json.dumps([voice.base.revision, files, weights])
    return f"fp_{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def heading(prefix: str, model: str, fingerprint: str) -> dict[str, Any]:
    """What all parts of one answer have in common; its id begins with the prefix."""
    return {
        "id": f"{prefix}-{uuid4().hex[:24]}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
    }
