"""Two adapters trained, merged over HTTP, and served: through real processes."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.test_end_to_end import (  # noqa: F401  # two of them are fixtures
    Serve,
    base,
    check_in_peft,
    follow,
    generate,
    serve,
    train,
    upload,
)
from tests.workers import conversations


def merge(client: httpx.Client, ids: list[str], **body: Any) -> dict[str, Any]:
    adapters = [{"id": id, "weight": 0.5} if len(ids) > 1 else {"id": id} for id in ids]
    answer = client.post("/adapters/merge", json={"adapters": adapters} | body)
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    events = follow(client, job_id)
    job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
    assert job["status"] == "succeeded", job
    return job | {"warnings": [event["message"] for event in events if event["level"] == "warn"]}


def adapter_of(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/adapters/{job['adapter_id']}").json()
    return found


@pytest.mark.slow
def test_two_adapters_become_one_and_one_becomes_a_model(
    serve: Serve,  # noqa: F811  # the fixture
    base: Path,  # noqa: F811  # the fixture
    tmp_path: Path,
) -> None:
    client = serve()
    dataset = upload(client, conversations(60))
    method = {"type": "sft", "num_train_epochs": 3, "learning_rate": 5e-3}
    ranks = {4: "q_proj", 6: "all-linear"}
    jobs = [
        train(
            client,
            dataset["id"],
            seed=rank,
            method=method,
            peft={"type": "lora", "r": rank, "target_modules": one if one[-1] == "r" else [one]},
        )
        for rank, one in ranks.items()
    ]
    parents = [job["adapter_id"] for job in jobs]
    plain = generate(client)

    exact = merge(client, parents, combination_type="cat", name="both")
    rough = merge(client, parents, combination_type="svd", svd_rank=2)
    whole = merge(client, parents[1:], into_base=True)

    made = adapter_of(client, exact)
    assert (made["name"], made["kind"], made["peft"]["r"]) == ("both", "lora", 10)
    assert made["metrics"]["merge_error"] < 1e-5
    assert made["metrics"]["merge_logprob_gap"] < 1e-4
    assert [one["adapter_id"] for one in made["lineage"]["parents"]] == parents
    assert [ref["id"] for ref in made["lineage"]["datasets"]] == [dataset["id"]]
    assert exact["warnings"] == []
    assert generate(client, adapter_id=made["id"])["logprobs"] != plain["logprobs"]
    check_in_peft(client, made["id"], base, tmp_path / "exact")

    error = adapter_of(client, rough)["metrics"]["merge_error"]
    assert error > 0.05
    assert f"{error:.1%}" in rough["warnings"][0]
    generate(client, adapter_id=rough["adapter_id"])

    model = adapter_of(client, whole)
    assert (model["kind"], model["metrics"]["merge_error"]) == ("full", 0)
    names = {file["name"] for file in model["files"]}
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= names
    said, same = (generate(client, adapter_id=id) for id in (parents[1], model["id"]))
    assert same["text"] == said["text"]

    for id in parents:
        assert client.delete(f"/adapters/{id}").status_code == 200
    assert generate(client, adapter_id=made["id"])["text"]
