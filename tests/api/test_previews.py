"""Previews and statistics: real tokens of the base, with what is learned marked."""

import json
from typing import Any

import httpx
import pytest

from api.services import Services

pytestmark = pytest.mark.anyio


async def test_the_preview_marks_what_the_assistant_said(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    answer = await client.get(f"/datasets/{dataset['id']}/preview?limit=2&base_model=tiny")
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert (page["object"], page["has_more"], len(page["data"])) == ("list", True, 2)
    row = page["data"][0]
    trained = "".join(token["text"] for token in row["tokens"] if token["trained"])
    text = "".join(token["text"] for token in row["tokens"])
    assert trained == "it is 7<|end|>"
    assert text == "<|user|>say the number<|end|><|assistant|>it is 7<|end|>"
    assert row["truncated"] is False


async def test_the_preview_is_cut_where_training_would_cut(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    answer = await client.get(f"/datasets/{dataset['id']}/preview?limit=1&max_length=8")
    (row,) = answer.json()["data"]
    assert (len(row["tokens"]), row["truncated"]) == (8, True)


async def test_the_preview_reads_no_further_than_it_must(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.dumps({"prompt": "q" * 500_000, "completion": "a"}) + "\n"
    made = await client.post("/datasets?format=jsonl", content=line * 20)
    read = 0
    stream = services.objects.stream

    def counted(key: str, **options: Any) -> Any:
        nonlocal read
        for chunk in stream(key, **options):
            read += len(chunk)
            yield chunk

    monkeypatch.setattr(services.objects, "stream", counted)
    answer = await client.get(f"/datasets/{made.json()['id']}/preview?limit=1&max_length=16")
    assert answer.status_code == 200
    assert read <= 4 << 20


async def test_statistics_count_tokens_truncation_and_duplicates(
    client: httpx.AsyncClient, dataset: dict[str, Any]
) -> None:
    answer = await client.get(f"/datasets/{dataset['id']}/statistics?max_length=8")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["object"], found["dataset"]) == ("dataset.statistics", dataset["id"])
    assert (found["base_model"], found["rows"], found["duplicates"]) == ("tiny", 60, 59)
    assert (found["truncated"], found["empty_mask"], found["max_length"]) == (60, 60, 8)
    assert sum(bucket["rows"] for bucket in found["histogram"]) == 60
    assert found["tokens"] == 60 * found["longest"]


@pytest.mark.parametrize("room", ["preview", "statistics"])
@pytest.mark.parametrize(
    ("query", "param"), [("base_model=gpt-9", "base_model"), ("max_length=7", "max_length")]
)
async def test_odd_questions_are_refused(
    client: httpx.AsyncClient, dataset: dict[str, Any], room: str, query: str, param: str
) -> None:
    answer = await client.get(f"/datasets/{dataset['id']}/{room}?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


async def test_bytes_that_are_lost_are_a_fault_not_a_404(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    for info in services.objects.list(""):
        services.objects.delete(info.key)
    answer = await client.get(f"/datasets/{dataset['id']}/preview")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "object_missing")
    assert "tenants/" not in answer.text
