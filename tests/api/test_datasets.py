"""Datasets over HTTP: what comes in is what is listed, and what is wrong is said by line."""

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from api.services import Services
from jobs.datasets import Datasets
from jobs.errors import StoreUnavailable
from jobs.model import Dataset

pytestmark = pytest.mark.anyio

ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
JSONL = "".join(json.dumps(ROW) + "\n" for _ in range(3)).encode()
CSV = b"prompt,completion\nq,a\nr,b\n"


async def test_an_upload_answers_with_its_report_and_keeps_the_bytes(
    client: httpx.AsyncClient, services: Services, stored: Callable[[], list[str]]
) -> None:
    answer = await client.post(
        "/datasets?name=three", content=JSONL, headers={"content-type": "application/jsonl"}
    )

    assert answer.status_code == 201
    body = answer.json()
    assert body.pop("id").startswith("ds_")
    assert isinstance(body.pop("created_at"), int)
    (warning,) = body.pop("warnings")
    assert "Few-shot" in warning
    assert body == {
        "object": "dataset",
        "name": "three",
        "format": "jsonl",
        "row_type": "conversation",
        "rows": 3,
        "bytes": len(JSONL),
        "sha256": hashlib.sha256(JSONL).hexdigest(),
        "duplicates": 2,
    }
    (key,) = stored()
    assert services.objects.get(key) == JSONL


@pytest.mark.parametrize(
    ("query", "content_type"),
    [
        ("?format=csv", "application/octet-stream"),
        ("", "text/csv; charset=utf-8"),
        ("?name=rows.csv", "application/x-www-form-urlencoded"),
        ("?name=rows.CSV", ""),
    ],
)
async def test_the_format_comes_from_the_query_the_type_or_the_name(
    client: httpx.AsyncClient, query: str, content_type: str
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = await client.post(f"/datasets{query}", content=CSV, headers=headers)
    assert (answer.status_code, answer.json()["format"]) == (201, "csv")


async def test_a_parquet_file_is_a_dataset(client: httpx.AsyncClient) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["q"], "completion": ["a"]}), sink)
    answer = await client.post("/datasets?name=rows.parquet", content=sink.getvalue())
    assert (answer.status_code, answer.json()["rows"]) == (201, 1)


async def test_a_file_of_no_known_format_is_refused_with_what_to_add(
    client: httpx.AsyncClient, stored: Callable[[], list[str]]
) -> None:
    answer = await client.post("/datasets?name=rows.xlsx", content=b"PK")
    assert answer.status_code == 415
    assert answer.json()["error"]["param"] == "format"
    assert "?format=jsonl" in answer.json()["error"]["message"]
    assert stored() == []


async def test_every_problem_is_told_by_line_and_field_and_nothing_is_kept(
    client: httpx.AsyncClient, stored: Callable[[], list[str]]
) -> None:
    bad = b'{"prompt": "q", "completion": "a"}\n{"prompt": 1, "completion": "a"}\n{oops\n'
    answer = await client.post("/datasets?format=jsonl", content=bad)

    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "dataset_invalid"
    assert [(p["line"], p["field"]) for p in error["problems"]] == [(2, "prompt"), (3, None)]
    assert error["total_problems"] == 2
    assert stored() == []
    assert (await client.get("/datasets")).json()["data"] == []


async def test_twenty_problems_of_many_are_shown(client: httpx.AsyncClient) -> None:
    answer = await client.post("/datasets?format=jsonl", content=b"{oops\n" * 30)
    error = answer.json()["error"]
    assert (len(error["problems"]), error["total_problems"]) == (20, 30)


async def test_the_row_type_may_be_asked_for(client: httpx.AsyncClient) -> None:
    answer = await client.post("/datasets?format=jsonl&row_type=preference", content=JSONL)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "dataset_invalid"


@pytest.mark.parametrize(
    "query", ["?format=xml", "?row_type=poem", "?name=", "?name=a%00b", "?x=1"]
)
async def test_an_odd_option_is_refused(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.post(f"/datasets{query}", content=JSONL)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == query[1:].partition("=")[0]


async def test_lists_are_newest_first_and_paged_by_the_last_id(client: httpx.AsyncClient) -> None:
    made = []
    for n in range(5):
        answer = await client.post(f"/datasets?name=n{n}.jsonl", content=JSONL)
        made.append(answer.json()["id"])

    first = (await client.get("/datasets?limit=2")).json()
    last = first["data"][-1]["id"]
    rest = (await client.get(f"/datasets?limit=100&after={last}")).json()

    assert [d["id"] for d in first["data"] + rest["data"]] == made[::-1]
    assert (first["object"], first["has_more"], rest["has_more"]) == ("list", True, False)


@pytest.mark.parametrize("limit", ["0", "101", "x"])
async def test_a_page_has_1_to_100_items(client: httpx.AsyncClient, limit: str) -> None:
    answer = await client.get(f"/datasets?limit={limit}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "limit")


async def test_a_deleted_dataset_is_gone_with_its_bytes(
    client: httpx.AsyncClient, dataset: dict[str, Any], stored: Callable[[], list[str]]
) -> None:
    answer = await client.delete(f"/datasets/{dataset['id']}")
    nothing: dict[str, Any] = {"jobs": [], "checkpoints": [], "adapters": []}
    assert answer.json() == {
        "id": dataset["id"],
        "object": "dataset",
        "deleted": True,
        "derived": {"object": "dataset.derived"} | nothing,
        "derived_deleted": False,
    }
    assert (await client.get(f"/datasets/{dataset['id']}")).status_code == 404
    assert (await client.delete(f"/datasets/{dataset['id']}")).status_code == 404
    assert stored() == []


async def test_a_dataset_that_a_job_waits_for_stays(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    spec = {
        "base_model": "tiny",
        "dataset": dataset["id"],
        "method": {"type": "sft", "max_length": 64},
    }
    job = (await client.post("/jobs", json=spec)).json()

    answer = await client.delete(f"/datasets/{dataset['id']}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "in_use")
    assert answer.headers["x-should-retry"] == "false"
    assert (await client.post(f"/jobs/{job['id']}/cancel")).json()["status"] == "cancelled"
    assert (await client.delete(f"/datasets/{dataset['id']}")).status_code == 200


async def test_what_the_database_did_without_saying_so_keeps_its_rows(
    client: httpx.AsyncClient, services: Services, stored: Callable[[], list[str]]
) -> None:
    class AnswersLost(Datasets):
        def add(self, dataset: Dataset) -> Dataset:
            super().add(dataset)
            raise StoreUnavailable("the answer got lost")

    services.store.datasets = AnswersLost(services.store.database)
    answer = await client.post("/datasets?format=jsonl", content=JSONL)
    assert answer.status_code == 503
    assert len((await client.get("/datasets")).json()["data"]) == len(stored()) == 1
