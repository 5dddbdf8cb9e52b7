"""Bodies: how large they may be, and JSON that every parser would read the same."""

import json
from typing import Any

import httpx
import pytest

from api.bodies import JSON_BYTES
from api.fields import field_path
from tests.api.making import spec_for

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


async def test_a_body_may_be_a_mebibyte_and_no_byte_more(client: httpx.AsyncClient) -> None:
    fits = await client.post("/jobs", content=b" " * JSON_BYTES, headers=JSON)
    above = await client.post("/jobs", content=b" " * (JSON_BYTES + 1), headers=JSON)
    assert (fits.status_code, above.status_code) == (400, 413)
    assert above.json()["error"]["code"] == "body_too_large"


async def test_a_body_of_no_known_length_is_counted_as_it_comes(client: httpx.AsyncClient) -> None:
    read = 0

    async def endless() -> Any:
        nonlocal read
        while True:
            read += 65536
            yield b" " * 65536

    answer = await client.post("/jobs", content=endless(), headers=JSON)
    assert answer.status_code == 413
    assert read <= JSON_BYTES + 2 * 65536


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 40, "٣"])
async def test_a_length_that_is_none_or_a_lie_is_refused(
    client: httpx.AsyncClient, length: str
) -> None:
    headers = [(b"content-length", length.encode()), (b"content-type", b"application/json")]
    answer = await client.post("/jobs", content=b"{}", headers=headers)
    assert answer.status_code in (400, 413)
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "identity, gzip"])
async def test_a_compressed_body_is_refused(client: httpx.AsyncClient, encoding: str) -> None:
    for route in ("/jobs", "/datasets?format=jsonl"):
        headers = {"content-encoding": encoding}
        answer = await client.post(route, content=b"\x1f\x8b", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            415,
            "media_type_unsupported",
        )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"base_model": "\xff"}',
        b'{"base_model": "\\ud800"}',
        b'{"seed": NaN}',
        b'{"seed": Infinity}',
        b'{"method": {"type": "sft", "max_grad_norm": 1e999}}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"{} {}",
        b"\x1f\x8b\x08\x00",
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_what_is_not_json_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    for route in ("/jobs", "/generate"):
        answer = await client.post(route, content=body, headers=JSON)
        assert answer.status_code in ((400, 422) if body == b"" else (400,)), answer.text
        assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"text"', b"true"])
async def test_json_that_is_no_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/jobs", content=body, headers=JSON)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error"}


async def test_json_sent_as_something_else_says_what_to_send(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:

    content = json.dumps(spec_for(dataset))
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {"content-type": kind} if kind else {}
        answer = await client.post("/jobs", content=content, headers=headers)
        assert answer.status_code == 422
        assert "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (("body", "peft", "lora", "r"), "peft.r"),
        (("body", "method", "learning_rate"), "method.learning_rate"),
        (("body", "metadata", "lora"), "metadata.lora"),
        (("query", "limit"), "limit"),
        (("body",), "body"),
        (("body", "messages", 3, "role"), "messages.3.role"),
        (("body", "grader", "regex", "pattern"), "grader.pattern"),
        (("body", "grader", "multi", "graders", "length", "regex", "x"), "grader.graders.length.x"),
        (("body", "grader", "multi", "graders", "grader", "length"), "grader.graders.grader"),
    ],
)
def test_a_field_is_named_as_a_client_writes_it(location: tuple[Any, ...], path: str) -> None:
    assert field_path(location) == path
