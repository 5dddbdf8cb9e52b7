"""Merges from the command line: adapters with weights in, a job to watch, what the result lost."""

import uuid
from typing import Any

from cli import look
from cli.client import Client
from cli.failure import CommandFailed
from cli.job import submitted, watch

_FIGURES = {
    "merge_error": "of the weights, from the exact weighted sum",
    "merge_logprob_gap": "nats a token from that sum, on the adapters' probes",
    "parents_logprob_gap": "nats a token from each adapter, on its own probes",
}


def weighted(text: str) -> dict[str, Any]:
    """`ad_...=0.7`, or an id alone for weight 1."""
    id, equals, weight = text.partition("=")
    try:
        return {"id": id, "weight": float(weight)} if equals else {"id": id}
    except ValueError as error:
        raise CommandFailed(f"{text} is not ADAPTER=WEIGHT, such as ad_...=0.7.") from error


def post(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """Submit once, however often the connection breaks."""
    job: dict[str, Any] = client.post(
        "/adapters/merge", body, headers={"idempotency-key": f"cli-{uuid.uuid4().hex}"}
    )
    return job


def told(client: Client, job: dict[str, Any], *, follow: bool) -> None:
    """Say what becomes of the job; with `follow`, to its end, and what the result lost."""
    submitted(job, follow)
    if not follow:
        return
    done = watch(client, job["id"])
    metrics = client.get(f"/adapters/{done['adapter_id']}")["metrics"]
    for name, what in _FIGURES.items():
        if name in metrics:
            look.fact(name, f"{metrics[name]:.2g}", what)
