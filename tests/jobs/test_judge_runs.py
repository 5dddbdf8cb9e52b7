"""Jobs whose grader asks a judge: real workers, a real, small model, and a judge that goes away."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jobs.model import Job, JobSpec, Status
from storage.keys import adapter_file
from tests.api.serving import serve
from tests.workers import House

STEPS = 5
JUDGE = {
    "type": "score_model",
    "model": "tiny",
    "input": [{"role": "user", "content": "Rate: {{ sample.output_text }}"}],
}


class Judge:
    """Gives each prompt a number of its own; away while `away` is set, from request `last` on."""

    def __init__(self) -> None:
        self.away, self.requests, self.refused = False, 0, 0
        self.last: int | None = None
        self.app = Starlette(routes=[Route("/v1/completions", self._complete, methods=["POST"])])

    async def _complete(self, request: Request) -> Response:
        ids = (await request.json())["prompt"]
        self.requests += 1
        self.away |= self.requests == self.last
        if self.away:
            self.refused += 1
            return JSONResponse({"error": {"message": "stopping", "code": "x"}}, 503)
        return JSONResponse({"choices": [{"text": f"0.{sum(ids) % 97:02d}"}]})


def submit(house: House, **method: Any) -> str:
    rows = [{"prompt": f"say {number}"} for number in range(8)]
    spec = JobSpec.model_validate(
        {
            "base_model": "tiny",
            "dataset": house.add_dataset(rows, "prompt"),
            "method": {
                "type": "grpo",
                "grader": JUDGE,
                "num_generations": 2,
                "per_device_batch_size": 4,
                "max_length": 32,
                "max_completion_length": 6,
                "max_steps": STEPS,
                "learning_rate": 1e-3,
            }
            | method,
            "peft": {"type": "lora", "r": 2},
            "checkpoint_every": 1,
        }
    )
    revision = house.bases.find("tiny").revision
    return house.store.jobs.submit(house.tenant_id, spec, base_revision=revision).job.id


def weights(house: House, job: Job) -> bytes:
    assert job.adapter_id is not None
    key = adapter_file(house.tenant_id, job.adapter_id, "adapter_model.safetensors")
    found: bytes = house.objects.get(key)
    return found


def rewards(house: House, job_id: str) -> dict[int, float]:
    """The reward of each step, as it was last reported."""
    events = house.store.jobs.events(house.tenant_id, job_id, limit=1000)[0]
    return {event.data["step"]: event.data["reward"] for event in events if "reward" in event.data}


@pytest.mark.slow
def test_a_job_whose_judge_was_away_ends_as_one_whose_judge_never_was(
    make_house: Callable[..., House],
) -> None:
    judge = Judge()
    with serve(judge.app) as port:
        house = make_house(
            inference_url=f"http://127.0.0.1:{port}", judge_patience_s=1.0, max_attempts=5
        )
        whole_id, cut_id = submit(house), submit(house)
        with house.worker():
            whole = house.wait(whole_id)
            assert whole.status is Status.SUCCEEDED, whole.error
            judge.last = judge.requests + 9  # in the third of its steps
            house.wait(cut_id, lambda job: job.attempt == 2)
            judge.away = False
            cut = house.wait(cut_id)

    assert cut.status is Status.SUCCEEDED, cut.error
    messages = [
        event.message for event in house.store.jobs.events(house.tenant_id, cut_id, limit=1000)[0]
    ]
    assert any("was away (status 503)" in message for message in messages), messages
    assert any(", from step 2" in message for message in messages), messages
    assert rewards(house, cut_id) == rewards(house, whole_id)
    assert len(set(rewards(house, cut_id).values())) > 1
    assert weights(house, cut) == weights(house, whole)


@pytest.mark.slow
def test_a_job_that_waits_for_its_judge_stops_when_it_is_asked_to(
    make_house: Callable[..., House],
) -> None:
    house = make_house(inference_url="http://127.0.0.1:9", judge_patience_s=600.0)
    asks = {Status.CANCELLED: house.store.jobs.cancel, Status.PAUSED: house.store.jobs.pause}
    with house.worker():
        for status, ask in asks.items():
            job_id = submit(house)
            house.wait(job_id, lambda job: _waits(house, job))
            ask(house.tenant_id, job_id)
            job = house.wait(job_id, lambda job: job.status is not Status.RUNNING)
            assert (job.status, job.attempt) == (status, 1)


def _waits(house: House, job: Job) -> bool:
    events = house.store.jobs.events(house.tenant_id, job.id, limit=1000)[0]
    return any("training waits for it" in event.message for event in events)
