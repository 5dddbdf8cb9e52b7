"""The main path from client code: upload, train, follow, generate. Needs `make serve` running."""

import json
import sys
from pathlib import Path

import httpx

HERE = Path(__file__).resolve().parent


def main(url: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        dataset = upload(client, HERE / "data" / "demo_train.jsonl")
        print(f"dataset {dataset['id']}: {dataset['rows']} rows of type {dataset['row_type']}")

        spec = json.loads((HERE / "data" / "demo_job.json").read_text())
        job = call(client, "POST", "/jobs", json=spec | {"dataset": dataset["id"]})
        follow(client, job["id"])
        job = call(client, "GET", f"/jobs/{job['id']}")
        if job["status"] != "succeeded":
            sys.exit(f"job {job['id']} {job['status']}: {job['error']}")

        prompt = json.loads((HERE / "data" / "demo_heldout.jsonl").read_text().splitlines()[0])
        for adapter_id in (None, job["adapter_id"]):
            body = {"messages": prompt["messages"], "temperature": 0, "max_tokens": 64}
            if adapter_id:
                body["adapter_id"] = adapter_id
            answer = call(client, "POST", "/generate", json=body)
            print(f"{adapter_id or 'base'}: {answer['text']}")


def call(client: httpx.Client, verb: str, path: str, **options: object) -> dict:
    """An answer's JSON; a refusal ends the script with what the service says about it."""
    answer = client.request(verb, path, **options)
    if answer.is_error:
        sys.exit(answer.json()["error"]["message"])
    return answer.json()


def upload(client: httpx.Client, path: Path) -> dict:
    with path.open("rb") as rows:
        return call(
            client,
            "POST",
            "/datasets",
            params={"name": path.name},
            content=rows,
            headers={"content-type": "application/jsonl"},
        )


def follow(client: httpx.Client, job_id: str) -> None:
    """Print a job's events as they come; the stream ends with the job."""
    events = {"accept": "text/event-stream"}
    try:
        with client.stream("GET", f"/jobs/{job_id}/events", headers=events, timeout=None) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    print(" ", json.loads(line.removeprefix("data: "))["message"])
    except httpx.TransportError as error:
        sys.exit(f"The service went away ({error}); {job_id} goes on when it is back.")


if __name__ == "__main__":
    main("http://127.0.0.1:8321", Path(".luthier/key").read_text().strip())
