"""S4, S10: every body is bounded, read strictly, and has no field but those that it has."""

import gzip
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.bodies import JSON_BYTES
from tests.record import Record
from tests.security.conftest import Operation

pytestmark = pytest.mark.anyio

JSON = "application/json"
SAMPLES = {"{id}": "job_" + "0" * 24, "{checkpoint_id}": "ck_" + "0" * 24}

HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "a brace": b"{",
    "100,000 lists": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-32": '{"a": 1}'.encode("utf-32"),
    "NUL": b"\x00" * 100,
    "a NUL in a text": b'{"name": "\\u0000"}',
    "half a character": b'{"name": "\\ud800"}',
    "not UTF-8": b'{"name": "\xff"}',
    "a field twice": b'{"name": "a", "name": "b", "name": 1}',
    "no number": b'{"seed": NaN}',
    "infinity": b'{"seed": 1e999}',
    "5,000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "10,000 fields": b"{" + b",".join(b'"f%d": 1' % n for n in range(10_000)) + b"}",
    "10,000 messages": b'{"messages": ['
    + b",".join([b'{"role": "user", "content": "x"}'] * 10_000)
    + b"]}",
    "a long text": b'{"name": "' + b"x" * (JSON_BYTES - 20) + b'"}',
    "a byte too many": b" " * (JSON_BYTES + 1),
    "gzip": gzip.compress(b"{}"),
    "zip": b"PK\x03\x04" + bytes(200),
    "a pickle": b"\x80\x04N.",
    "XML": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]><x>&y;</x>',
    "a list": b"[]",
    "null": b"null",
    "a proto": b'{"__proto__": {"x": 1}, "constructor": {"prototype": 1}}',
}


def headers_of() -> Iterator[dict[str, str]]:
    for kind in (JSON, "text/plain", "application/jsonl", "multipart/form-data; boundary=x", ""):
        yield {"content-type": kind} if kind else {}
    yield {"content-type": JSON, "content-encoding": "gzip"}
    yield {"content-type": "multipart/form-data"}
    yield {"content-type": "application/json; charset=utf-7"}


async def test_no_body_is_too_much_for_any_route(
    client: httpx.AsyncClient, operations: list[Operation], record: Record
) -> None:
    tried = 0
    with_body = [operation for operation in operations if operation.method == "POST"]
    assert len(with_body) >= 15
    for operation in with_body:
        path = operation.path
        for slot, id in SAMPLES.items():
            path = path.replace(slot, id)
        for name, body in HOSTILE.items():
            for headers in headers_of() if len(body) < 1000 else ({"content-type": JSON},):
                answer = await client.post(path, content=body, headers=headers)
                where = f"{operation}: {name}, {headers}: {answer.text[:300]}"
                assert 400 <= answer.status_code < 500, where
                assert set(answer.json()) == {"error"}, where
                assert len(answer.content) < 20_000, where
                tried += 1
    record("S4", "hostile bodies, all answered with a 4xx in the envelope", tried, at_least=2000)


@pytest.mark.parametrize("path", ["/jobs", "/datasets?format=jsonl", "/adapters/import"])
@pytest.mark.parametrize("length", ["-1", "1e9", "0x10", "+5", "9" * 30, " ", "5, 5", "\u0665"])
async def test_a_length_that_is_none_is_refused(
    client: httpx.AsyncClient, path: str, length: str
) -> None:
    headers = [(b"content-length", length.encode()), (b"content-type", JSON.encode())]
    answer = await client.post(path, content=b"{}", headers=headers)
    assert answer.status_code in (400, 413), answer.text


async def test_long_queries_and_headers_are_refused_or_ignored(
    client: httpx.AsyncClient, operations: list[Operation]
) -> None:
    long = "x" * 10_000
    for operation in operations:
        path = operation.path
        for slot, id in SAMPLES.items():
            path = path.replace(slot, id)
        answer = await client.request(
            operation.method,
            path,
            params={"limit": long, "after": long, "name": long, "base_model": long, long: "1"},
            headers={"idempotency-key": long, "last-event-id": long, "x-request-id": long},
        )
        assert answer.status_code < 500, f"{operation}: {answer.text[:300]}"
        assert answer.is_success or len(answer.content) < 50_000, operation
        assert answer.headers["x-request-id"].startswith("req_")


async def test_every_object_in_a_body_refuses_fields_that_it_has_not(
    app: FastAPI, operations: list[Operation], record: Record
) -> None:
    """By the document, so that a new body is looked at by being there."""
    schemas = app.openapi()["components"]["schemas"]
    seen: set[str] = set()
    open_ones: list[str] = []

    def look(schema: Any, where: str) -> None:
        if isinstance(schema, list):
            for part in schema:
                look(part, where)
        if not isinstance(schema, dict):
            return
        if name := schema.get("$ref", "").rpartition("/")[2]:
            if name not in seen:
                seen.add(name)
                look(schemas[name], name)
            return
        if "properties" in schema and schema.get("additionalProperties") is not False:
            open_ones.append(where)
        for part in schema.values():
            look(part, where)

    for operation in operations:
        for kind, content in operation.document.get("requestBody", {}).get("content", {}).items():
            if kind in (JSON, "multipart/form-data"):
                look(content["schema"], str(operation))
    assert open_ones == []
    record("S10", "kinds of objects in bodies, all closed", len(seen), at_least=30)
