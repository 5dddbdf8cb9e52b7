"""THE table of what a key needs for each route. A route that is not in it can be called by nobody.

The scope also says which of the tenant's rates a call counts against: reads, generations, and
writes for all else.
"""

from typing import Literal

from jobs.keys import Scope
from jobs.quotas import Quotas

Needed = Scope | Literal["none"]

SCOPES: dict[str, Needed] = {
    "POST /datasets": "write",
    "GET /datasets": "read",
    "GET /datasets/{id}": "read",
    "DELETE /datasets/{id}": "write",
    "GET /datasets/{id}/derived": "read",
    "GET /datasets/{id}/preview": "read",
    "GET /datasets/{id}/statistics": "read",
    "POST /jobs": "write",
    "GET /jobs": "read",
    "GET /jobs/{id}": "read",
    "POST /jobs/estimate": "write",  # minutes of a core: for those who may post the job
    "GET /jobs/{id}/events": "read",
    "GET /jobs/{id}/metrics": "read",
    "GET /jobs/{id}/checkpoints": "read",
    "POST /jobs/{id}/checkpoints/{checkpoint_id}/publish": "write",
    "POST /jobs/{id}/cancel": "write",
    "POST /jobs/{id}/pause": "write",
    "POST /jobs/{id}/resume": "write",
    "POST /pipelines": "write",
    "GET /pipelines": "read",
    "GET /pipelines/{id}": "read",
    "POST /pipelines/{id}/cancel": "write",
    "GET /adapters": "read",
    "GET /adapters/{id}": "read",
    "DELETE /adapters/{id}": "write",
    "GET /adapters/{id}/download": "read",
    "POST /adapters/import": "write",
    "POST /adapters/merge": "write",
    "POST /generate": "generate",
    "POST /v1/chat/completions": "generate",
    "POST /v1/completions": "generate",
    "POST /score": "generate",
    "POST /graders/run": "generate",
    "POST /graders/validate": "read",
    "GET /models": "read",
    "POST /v1/files": "write",
    "GET /v1/files": "read",
    "GET /v1/files/{id}": "read",
    "DELETE /v1/files/{id}": "write",
    "GET /v1/files/{id}/content": "read",
    "POST /v1/uploads": "write",
    "POST /v1/uploads/{id}/parts": "write",
    "POST /v1/uploads/{id}/complete": "write",
    "POST /v1/uploads/{id}/cancel": "write",
    "GET /audit": "admin",
    "POST /v1/fine_tuning/jobs": "write",
    "GET /v1/fine_tuning/jobs": "read",
    "GET /v1/fine_tuning/jobs/{id}": "read",
    "POST /v1/fine_tuning/jobs/{id}/cancel": "write",
    "POST /v1/fine_tuning/jobs/{id}/pause": "write",
    "POST /v1/fine_tuning/jobs/{id}/resume": "write",
    "GET /v1/fine_tuning/jobs/{id}/events": "read",
    "GET /v1/fine_tuning/jobs/{id}/checkpoints": "read",
    "POST /v1/fine_tuning/alpha/graders/run": "generate",
    "POST /v1/fine_tuning/alpha/graders/validate": "read",
    "POST /v1/webhook_endpoints": "write",
    "GET /v1/webhook_endpoints": "read",
    "GET /v1/webhook_endpoints/{id}": "read",
    "POST /v1/webhook_endpoints/{id}": "write",
    "DELETE /v1/webhook_endpoints/{id}": "write",
    "POST /v1/webhook_endpoints/{id}/rotate_secret": "write",
    "POST /v1/webhook_endpoints/{id}/test": "write",
    "GET /v1/webhook_event_types": "read",
    "GET /v1/models": "read",
    "GET /v1/models/{id}": "read",
    "DELETE /v1/models/{id}": "write",
    "GET /healthz": "none",
    "GET /readyz": "none",
}
OPEN = frozenset(route.partition(" ")[2] for route, needed in SCOPES.items() if needed == "none")


def rate_of(needed: Needed, quotas: Quotas) -> tuple[str, int]:
    """Which of a tenant's rates a call counts against, and how many a minute it allows."""
    if needed == "read":
        return "reads", quotas.reads_per_minute
    if needed == "generate":
        return "generations", quotas.generations_per_minute
    return "writes", quotas.writes_per_minute
