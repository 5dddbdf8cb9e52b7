"""Requests for paths that are no route, as clients of OpenAI's come to send them."""

import httpx
import pytest

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/chat/completions", "end the client's `base_url` with it"),
        ("/fine_tuning/jobs", "end the client's `base_url` with it"),
        ("/v1/v1/chat/completions", "/v1 twice"),
        ("/v1/responses", "use POST /v1/chat/completions"),
        ("/v1/responses/resp_1/input_items", "use POST /v1/chat/completions"),
        ("/v1/embeddings", "text alone"),
    ],
)
async def test_a_path_that_openai_has_elsewhere_is_told_where(
    client: httpx.AsyncClient, path: str, says: str
) -> None:
    answer = await client.post(path, json={})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "route_not_found")
    assert says in error["message"]


@pytest.mark.parametrize("path", ["/nope", "/v1/nope", "/v1", "/v1/", "/v1/v1/nope", "//", "/v1//"])
async def test_any_other_path_is_only_not_found(client: httpx.AsyncClient, path: str) -> None:
    message = (await client.post(path, json={})).json()["error"]["message"]
    assert message == "Not Found: see /docs for what this server takes."
