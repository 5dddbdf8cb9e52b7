"""Fine-tuning jobs by OpenAI's own SDK, against a real server."""

import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from engine.estimate.model import Estimate
from jobs.tables import idempotency_keys
from tests.v1.tuning.service import PAIR, QUESTION, Service

# Which rows a method learns from.
ROWS = {"dpo": PAIR, "reinforcement": QUESTION}
CHECK: dict[str, Any] = {
    "type": "string_check",
    "name": "right",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    block = {"hyperparameters": hyperparameters, "max_length": 64}
    return {"type": "supervised", "supervised": block}


def refusal(call: Callable[[], Any]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    assert caught.value.request_id, "the SDK's error has no request id"
    return caught.value


def test_a_job_is_made_looked_at_paused_resumed_and_cancelled(
    live: Service, sdk: openai.OpenAI
) -> None:
    file = live.upload()
    jobs = sdk.fine_tuning.jobs
    job = jobs.create(
        model="tiny",
        training_file=file,
        method=supervised(n_epochs=2, batch_size=32, learning_rate_multiplier=0.5),
        suffix="mine",
        seed=7,
        metadata={"team": "a"},
    )
    assert (job.object, job.status, job.model) == ("fine_tuning.job", "queued", "tiny")
    assert (job.training_file, job.seed, job.metadata) == (file, 7, {"team": "a"})
    assert (job.fine_tuned_model, job.finished_at, job.trained_tokens) == (None, None, None)
    assert job.result_files == []
    assert job.hyperparameters.model_dump() == {
        "n_epochs": 2,
        "batch_size": 32,
        "learning_rate_multiplier": 0.5,
    }
    assert job.method.type == "supervised"
    native = live.http.get(f"/jobs/{job.id}").json()
    assert native["name"] == "mine"
    method = native["method"]
    assert method["per_device_batch_size"] * method["gradient_accumulation_steps"] == 32
    assert method["learning_rate"] == method_rate(live, file) * 0.5

    assert jobs.retrieve(job.id).id == job.id
    assert jobs.pause(job.id).status == "paused"
    assert jobs.resume(job.id).status == "queued"
    assert jobs.cancel(job.id).status == "cancelled"
    conflict = refusal(lambda: jobs.resume(job.id))
    assert conflict.status_code == 409
    assert conflict.response.headers["x-should-retry"] == "false"


def method_rate(live: Service, file: str) -> float:
    """What "auto" is for this file."""
    method = {"type": "sft", "max_length": 64, "learning_rate": "auto"}
    body = {"base_model": "tiny", "dataset": file, "method": method}
    rate: float = live.http.post("/jobs", json=body).json()["method"]["learning_rate"]
    return rate


def test_what_runs_is_seen_and_what_came_out_is_a_model(live: Service, sdk: openai.OpenAI) -> None:
    jobs = sdk.fine_tuning.jobs
    job = jobs.create(model="tiny", training_file=live.upload(), method=supervised())
    live.claim(job.id)
    for step in (1, 2, 3):
        live.step(job.id, step)
    saved = [live.save_checkpoint(job.id, step) for step in (1, 2)]
    asked_at = int(time.time())
    running = jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish is not None
    assert running.estimated_finish >= asked_at
    model = live.succeed(job.id)

    done = jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model, done.estimated_finish) == ("succeeded", model, None)
    assert done.finished_at is not None
    assert done.error is None

    events = list(jobs.list_events(job.id, limit=2))  # the SDK asks for page after page
    assert [event.id for event in events] == sorted(
        {event.id for event in events}, key=lambda id: -int(id.rpartition("-")[2])
    )
    assert len(events) == live.http.get(f"/jobs/{job.id}/events").json()["data"][-1]["seq"]
    metrics = [event.data for event in events if event.type == "metrics"]
    assert [one["train_loss"] for one in metrics] == [2.0 / 3, 1.0, 2.0]  # type: ignore[index]
    assert {event.type for event in events} == {"metrics", "message"}

    checkpoints = list(jobs.checkpoints.list(job.id, limit=1))
    assert [one.id for one in checkpoints] == saved[::-1]
    assert [one.step_number for one in checkpoints] == [2, 1]
    assert checkpoints[0].metrics.train_loss == 0.5
    assert checkpoints[0].fine_tuning_job_id == job.id
    assert checkpoints[0].fine_tuned_model_checkpoint.startswith("ad_")

    again = jobs.create(model=model, training_file=live.upload(), method=supervised())
    assert again.model == model
    native = live.http.get(f"/jobs/{again.id}").json()
    assert (native["init"], native["base_model"]) == (model, "tiny")


def test_the_first_steps_which_wait_for_the_start_do_not_tell_when_a_job_ends(
    live: Service, sdk: openai.OpenAI
) -> None:
    job = sdk.fine_tuning.jobs.create(
        model="tiny", training_file=live.upload(), method=supervised()
    )
    body = {"base_model": "tiny", "dataset": job.training_file}
    method = {"type": "sft", "max_length": 64}
    found = live.http.post("/jobs/estimate", json=body | {"method": method}).json()
    estimate = Estimate.model_validate(
        {name: found[name] for name in Estimate.model_fields if name in found} | {"seconds": 3600.0}
    )
    live.claim(job.id)
    live.store.leases.note_estimate(job.id, 1, estimate)
    started_at = live.http.get(f"/jobs/{job.id}").json()["started_at"]
    finishes = []
    for step in (1, 90):
        live.step(job.id, step, total=100)
        finishes.append(sdk.fine_tuning.jobs.retrieve(job.id).estimated_finish)
    assert finishes[0] == int(started_at + 3600)
    assert finishes[1] is not None
    assert finishes[1] < started_at + 600


def test_a_failed_job_says_why(live: Service, sdk: openai.OpenAI) -> None:
    jobs = sdk.fine_tuning.jobs
    job = jobs.create(model="tiny", training_file=live.upload(), method=supervised())
    live.claim(job.id)
    live.fail(job.id)
    error = jobs.retrieve(job.id).error
    assert error is not None
    assert (error.code, error.message, error.param) == ("out_of_memory", "Too large.", "method")


def test_lists_go_by_cursor_and_metadata_and_show_both_apis_jobs(
    live: Service, sdk: openai.OpenAI, other: Callable[[], openai.OpenAI]
) -> None:
    file, jobs = live.upload(), sdk.fine_tuning.jobs
    odd = {'a"b.c': "x,y}", "empty": ""}
    labels: list[dict[str, str] | None] = [{"team": "a"}, {"team": "b", "run": "1"}, odd, None]
    made = [
        jobs.create(model="tiny", training_file=file, method=supervised(), metadata=label).id
        for label in labels
    ]
    method = {"type": "sft", "max_length": 64}
    body = {"base_model": "tiny", "dataset": file, "method": method}
    native = live.http.post("/jobs", json=body).json()["id"]
    assert [job.id for job in jobs.list(limit=2)] == [native, *made[::-1]]
    assert [job.id for job in jobs.list(metadata={"team": "b"})] == [made[1]]
    assert [job.id for job in jobs.list(metadata={"team": "b", "run": "1"})] == [made[1]]
    assert list(jobs.list(metadata={"team": "c"})) == []
    for name, value in odd.items():
        assert [job.id for job in jobs.list(metadata={name: value})] == [made[2]], name
    null = jobs.list(extra_query={"metadata": "null"})
    assert [job.id for job in null] == [native, made[3]]
    many = "&".join(f"metadata[k{i}]=v" for i in range(2000))  # more than a database can compare
    for query in (many, "metadata[team]=a&metadata[team]=b", "metadata[a]=%00"):
        answer = live.http.get(f"/v1/fine_tuning/jobs?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "metadata")
    assert live.http.get(f"/jobs/{made[0]}").json()["id"] == made[0]
    with other() as stranger:
        assert list(stranger.fine_tuning.jobs.list()) == []
        assert refusal(lambda: stranger.fine_tuning.jobs.retrieve(made[0])).status_code == 404


@pytest.mark.parametrize(
    ("method", "ours"),
    [
        (
            {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": "auto"}}},
            {"type": "dpo", "beta": 0.3},
        ),
        (
            {
                "type": "reinforcement",
                "reinforcement": {
                    "grader": CHECK,
                    "hyperparameters": {
                        "compute_multiplier": 0.5,
                        "batch_size": 6,
                        "eval_interval": "auto",
                        "reasoning_effort": "default",
                    },
                },
            },
            {
                "type": "grpo",
                "num_generations": 4,
                "per_device_batch_size": 12,
                "gradient_accumulation_steps": 2,
            },
        ),
        (
            {"type": "orpo", "orpo": {"beta": 0.2, "num_train_epochs": 2}},
            {"type": "orpo", "beta": 0.2, "num_train_epochs": 2.0, "learning_rate": 5e-5},
        ),
    ],
)
def test_every_method_is_taken_in_openai_s_words_or_ours(
    live: Service, sdk: openai.OpenAI, method: dict[str, Any], ours: dict[str, Any]
) -> None:
    type = method["type"]
    method[type]["max_length"] = 32
    file = live.upload(QUESTION if type == "reinforcement" else PAIR)
    peft = {"type": "lora", "r": 4}
    asked: Any = method
    job = sdk.fine_tuning.jobs.create(
        model="org/tiny", training_file=file, method=asked, extra_body={"peft": peft}
    )
    native = live.http.get(f"/jobs/{job.id}").json()
    assert {name: native["method"][name] for name in ours} == ours
    assert native["peft"]["r"] == 4
    assert job.method is not None
    assert job.method.type == type
    shown: dict[str, Any] = job.method.model_dump()[type]
    given = method[type].get("hyperparameters", {})
    told = {k: v for k, v in given.items() if isinstance(v, int | float)}
    assert {name: shown["hyperparameters"][name] for name in told} == told


def test_a_validation_file_is_looked_at_and_goes_with_no_other_way_to_hold_rows_out(
    live: Service, sdk: openai.OpenAI
) -> None:
    file, looked_at = live.upload(), live.upload({"prompt": "a", "completion": "b"})
    jobs = sdk.fine_tuning.jobs
    job = jobs.create(
        model="tiny", training_file=file, validation_file=looked_at, method=supervised()
    )
    assert (job.training_file, job.validation_file) == (file, looked_at)
    assert live.http.get(f"/jobs/{job.id}").json()["validation"] == looked_at
    in_use = live.http.delete(f"/datasets/{looked_at}").json()["error"]
    assert in_use["code"] == "in_use"

    split: Any = supervised()
    split["supervised"]["validation_split"] = 0.1
    for changes, code in (
        ({"validation_file": file}, "same_dataset"),
        ({"validation_file": live.upload(PAIR)}, "wrong_row_type"),
        ({"validation_file": looked_at, "method": split}, "validation_unsupported"),
    ):
        asked: Any = {"model": "tiny", "training_file": file, "method": supervised()} | changes
        error = refusal(lambda asked=asked: jobs.create(**asked))  # type: ignore[misc]
        assert (error.status_code, error.param, error.code) == (422, "validation_file", code)
        assert "`dataset`" not in error.message


@pytest.mark.parametrize(
    ("changes", "param", "code", "says"),
    [
        ({"training_file": "file-abc123"}, "training_file", "not_found", "No file with id 'file-a"),
        ({"training_file": "ds_" + "0" * 24}, "training_file", "not_found", "POST /v1/files"),
        ({"validation_file": "ds_" + "0" * 24}, "validation_file", "not_found", "POST /v1/files"),
        ({"model": "ad_" + "0" * 24}, "model", "model_not_found", "GET /v1/models"),
    ],
)
def test_what_a_job_needs_and_is_not_there_is_told_by_its_field(
    live: Service, sdk: openai.OpenAI, changes: dict[str, str], param: str, code: str, says: str
) -> None:
    asked: Any = {"model": "tiny", "training_file": live.upload(), "method": supervised()}
    error = refusal(lambda: sdk.fine_tuning.jobs.create(**asked | changes))
    assert (error.status_code, error.param, error.code) == (404, param, code)
    assert says in error.message


def test_an_estimate_says_how_many_rows_are_only_looked_at(live: Service) -> None:
    file, looked_at = live.upload(), live.upload({"prompt": "a", "completion": "b"}, rows=7)
    body = {"base_model": "tiny", "dataset": file, "validation": looked_at}
    method = {"type": "sft", "max_length": 64}
    found = live.http.post("/jobs/estimate", json=body | {"method": method}).json()
    assert (found["trained_rows"], found["held_out_rows"], found["validation"]) == (
        60,
        7,
        looked_at,
    )


def test_the_deprecated_hyperparameters_are_those_of_a_supervised_job(
    live: Service, sdk: openai.OpenAI
) -> None:
    job = sdk.fine_tuning.jobs.create(
        model="tiny", training_file=live.upload(), hyperparameters={"n_epochs": 4}
    )
    assert job.hyperparameters.n_epochs == 4
    assert isinstance(job.hyperparameters.batch_size, int)


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"model": "gpt-4o-mini"}, "model", "base_model_not_allowed"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", None),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo", None),
        ({"method": {"type": "magic"}}, "method.type", None),
        ({"hyperparameters": {"n_epochs": 1}, "method": {"type": "dpo"}}, "hyperparameters", None),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", None),
        ({"hyperparameters": {"speed": 1}}, "hyperparameters.speed", "unknown_field"),
        ({"speed": 1}, "speed", "unknown_field"),
        ({"suffix": "x" * 65}, "suffix", None),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", None),
        (
            {"method": {"type": "supervised", "supervised": {"speed": 1}}},
            "method.supervised.speed",
            "unknown_field",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"learning_rate": 2}}},
            "method.supervised.learning_rate",
            None,
        ),
        (
            {"method": {"type": "supervised", "supervised": {"max_length": 1_000_000}}},
            "method.supervised.max_length",
            "max_length_too_long",
        ),
        ({"method": {"type": "dpo"}}, "training_file", "wrong_row_type"),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement", None),
        (
            {
                "method": {
                    "type": "reinforcement",
                    "reinforcement": {
                        "grader": CHECK,
                        "hyperparameters": {"reasoning_effort": "high"},
                    },
                }
            },
            "method.reinforcement.hyperparameters.reasoning_effort",
            "hyperparameter_unsupported",
        ),
        (
            {
                "method": {
                    "type": "reinforcement",
                    "reinforcement": {"grader": CHECK, "hyperparameters": {"eval_interval": 5}},
                }
            },
            "method.reinforcement.hyperparameters.eval_interval",
            "hyperparameter_unsupported",
        ),
        (  # PostgreSQL would read no field of such a job again, for lists and for /metrics
            {
                "method": {
                    "type": "reinforcement",
                    "reinforcement": {"grader": CHECK | {"reference": "a\0b"}},
                }
            },
            "method.reinforcement.grader.reference",
            "invalid_request",
        ),
    ],
)
def test_what_is_wrong_is_told_at_its_field(
    live: Service, sdk: openai.OpenAI, changes: dict[str, Any], param: str, code: str | None
) -> None:
    file = live.upload()
    body: dict[str, Any] = {"model": "tiny", "training_file": file} | changes
    error = refusal(lambda: sdk.post("/fine_tuning/jobs", body=body, cast_to=object))
    assert error.status_code == 422
    assert error.param == param, error.message
    assert code in (None, error.code), error.message
    assert list(sdk.fine_tuning.jobs.list()) == []


def test_the_same_body_again_is_the_same_job_until_it_has_ended(
    live: Service, sdk: openai.OpenAI
) -> None:
    file, jobs = live.upload(), sdk.fine_tuning.jobs

    def create(seed: int = 0, **headers: str) -> str:
        return jobs.create(
            model="tiny",
            training_file=file,
            method=supervised(),
            seed=seed,
            extra_headers=headers,
        ).id

    first = create()
    assert create() == first
    assert create(seed=1) != first
    keyed = create(**{"Idempotency-Key": "a"})
    assert keyed != first
    assert create(**{"Idempotency-Key": "a"}) == keyed
    jobs.cancel(first)
    second = create()
    assert second != first
    assert create() == second


def test_after_its_window_the_same_body_is_a_new_job(live: Service, sdk: openai.OpenAI) -> None:
    file = live.upload()

    def create() -> str:
        method = supervised()
        return sdk.fine_tuning.jobs.create(model="tiny", training_file=file, method=method).id

    first = create()
    with live.store.database.write() as connection:
        earlier = idempotency_keys.c.created_at - 61
        connection.execute(idempotency_keys.update().values(created_at=earlier))
    second = create()
    assert second != first
    assert create() == second


@pytest.mark.anyio
async def test_the_async_client_does_it_all_too(
    live: Service, async_sdk: openai.AsyncOpenAI
) -> None:
    jobs = async_sdk.fine_tuning.jobs
    job = await jobs.create(model="tiny", training_file=live.upload(), method=supervised())
    assert (await jobs.retrieve(job.id)).status == "queued"
    assert [one.id async for one in jobs.list(limit=1)] == [job.id]
    assert [event.message async for event in jobs.list_events(job.id)] == ["queued"]
    assert [one.id async for one in jobs.checkpoints.list(job.id)] == []
    assert (await jobs.pause(job.id)).status == "paused"
    assert (await jobs.resume(job.id)).status == "queued"
    assert (await jobs.cancel(job.id)).status == "cancelled"


def test_a_merge_is_no_fine_tuning_job(live: Service, sdk: openai.OpenAI) -> None:
    job = sdk.fine_tuning.jobs.create(
        model="tiny", training_file=live.upload(), method=supervised()
    )
    live.claim(job.id)
    model = live.succeed(job.id)
    body = {"adapters": [{"id": model}], "into_base": True}
    merge = live.http.post("/adapters/merge", json=body).json()
    assert [one.id for one in sdk.fine_tuning.jobs.list()] == [job.id]
    for act in ("retrieve", "cancel", "pause", "resume", "list_events"):
        error = refusal(lambda act=act: getattr(sdk.fine_tuning.jobs, act)(merge["id"]))  # type: ignore[misc]
        assert error.status_code == 404, act
    assert live.http.get(f"/jobs/{merge['id']}").json()["status"] == "queued"
