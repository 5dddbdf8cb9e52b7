"""Signposts: where a request meant to go whose path is no route."""

from collections.abc import Callable

V1 = "/v1"
WITHOUT = "OpenAI's routes begin with /v1: end the client's `base_url` with it"
TWICE = "The path has /v1 twice: leave one out of the client's `base_url`"
CHAT = "use POST /v1/chat/completions in its place"
TEXT_ALONE = "The models of this server write text alone"
# What OpenAI has under /v1 and this server has not, by the first word of the path.
INSTEAD = {
    "responses": f"The Responses API is not served: {CHAT}",
    "conversations": f"The Conversations API is not served: {CHAT}",
    "assistants": f"The Assistants API is not served: {CHAT}",
    "threads": f"The Assistants API is not served: {CHAT}",
    "batches": "Batches are not served: send many requests at once to POST /v1/chat/completions",
    "embeddings": TEXT_ALONE,
    "moderations": TEXT_ALONE,
    "images": TEXT_ALONE,
    "audio": TEXT_ALONE,
}


def signpost(path: str, is_route: Callable[[str], bool]) -> str | None:
    """What to ask in place of a path, where that can be told."""
    if path.startswith(f"{V1}{V1}/") and is_route(path.removeprefix(V1)):
        return TWICE
    if path.startswith(f"{V1}/"):
        return INSTEAD.get(path.split("/")[2])
    return WITHOUT if is_route(V1 + path) else None
