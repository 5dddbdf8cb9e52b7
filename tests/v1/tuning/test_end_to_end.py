"""OpenAI's SDK against `luthier serve`: a job is trained, and its end arrives as a webhook."""

import json
import time
from typing import Any

import httpx
import openai
import pytest

from tests.test_end_to_end import Serve, base, serve, upload  # noqa: F401  # two are fixtures
from tests.v1.tuning.receiver import receiving
from tests.workers import conversations

SUCCEEDED = "fine_tuning.job.succeeded"


def ended(sdk: openai.OpenAI, job_id: str) -> Any:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        job = sdk.fine_tuning.jobs.retrieve(job_id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.2)
    raise AssertionError(f"job {job_id} did not end")


@pytest.mark.slow
def test_a_job_is_trained_and_its_end_arrives_signed(serve: Serve) -> None:  # noqa: F811
    client: httpx.Client = serve(webhook_networks=json.dumps(["127.0.0.0/8"]))
    key = client.headers["authorization"].removeprefix("Bearer ")
    file = upload(client, conversations(32))["id"]
    looked_at = upload(client, conversations(40)[32:])["id"]
    method: Any = {
        "type": "supervised",
        "supervised": {
            "hyperparameters": {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 2},
        },
    }
    with (
        receiving() as receiver,
        openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=key, max_retries=0) as sdk,
    ):
        hook = sdk.webhooks.create(name="end", url=receiver.url, event_types=[SUCCEEDED])
        made = sdk.fine_tuning.jobs.create(
            model="tiny",
            training_file=file,
            validation_file=looked_at,
            method=method,
            extra_body={"peft": {"type": "lora", "r": 4}, "checkpoint_every": 4},
        )
        job = ended(sdk, made.id)
        assert job.status == "succeeded", job.error
        events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=50))
        got = receiver.wait_for(1)[0]
        event = sdk.webhooks.unwrap(got.body, got.headers, secret=hook.signing_secret)
        checkpoints = list(sdk.fine_tuning.jobs.checkpoints.list(job.id))
        models = {model.id for model in sdk.models.list()}

    assert (event.type, event.data.id) == (SUCCEEDED, job.id)
    assert job.hyperparameters.model_dump() == {
        "n_epochs": 2,
        "batch_size": 8,
        "learning_rate_multiplier": 2.0,
    }
    native = client.get(f"/jobs/{job.id}").json()
    assert job.trained_tokens == 2 * native["estimate"]["tokens"] > 0
    steps = [one.data for one in events if one.type == "metrics" and "train_loss" in one.data]
    assert [one["step"] for one in steps] == list(range(8, 0, -1))
    assert steps[0]["train_loss"] < steps[-1]["train_loss"], "newest first, and it has learned"
    assert any("full_valid_loss" in one.data for one in events if one.type == "metrics")
    assert checkpoints[0].step_number in (4, 8)
    assert models == {"tiny", job.fine_tuned_model}
