"""The runner with a scripted trainer: what it writes, and when it must not write."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import sqlalchemy as sa
from safetensors.numpy import save_file

from adapters import registry
from adapters.errors import AdapterMissing
from engine.plan import (
    Failed,
    Finished,
    Probe,
    Report,
    Saved,
    Started,
    Stepped,
    Stopped,
    TrainPlan,
)
from jobs.attempt import Workshop
from jobs.errors import StoreUnavailable
from jobs.leases import Leases
from jobs.model import Job, Status
from jobs.publishing import adapter_id_of
from jobs.runner import Runner
from jobs.tables import jobs
from storage.memory import MemoryStore
from storage.objects import StorageUnavailable
from tests.workers import House, conversations

Step = Callable[["Script"], Report | None]
CONTRACT = {"tokenizer_sha256": "0" * 64}


class Script:
    """A child that says what it was given to say, by the trainer's protocol."""

    def __init__(self, plan: TrainPlan, steps: list[Step]) -> None:
        self.plan, self._steps = plan, list(steps)
        self.told: list[str] = []
        self.killed = False

    def receive(self, timeout_s: float) -> Report | None:
        if self.killed or not self._steps:
            raise EOFError
        report = self._steps[0](self)
        if report is not None or self._steps[0] is not wait_for_word:
            self._steps.pop(0)
        return report

    @property
    def left(self) -> int:
        """What it has not come to, its last words aside."""
        return sum(one is not wait_for_word for one in self._steps)

    def tell(self, directive: Literal["cancel", "pause"]) -> None:
        self.told.append(directive)

    def kill(self) -> None:
        self.killed = True

    def exit_code(self) -> int | None:
        return -9 if self.killed else 1


class Scripted:
    """A launcher of scripts; each attempt takes the next one."""

    def __init__(self, *scripts: list[Step]) -> None:
        self._scripts = list(scripts)
        self.started: list[Script] = []

    def warm_up(self) -> None:
        pass

    def start(self, plan: TrainPlan) -> Script:
        self.started.append(Script(plan, self._scripts.pop(0)))
        return self.started[-1]


def step(number: int) -> Step:
    return lambda script: Stepped(
        step=number, total_steps=9, epoch=0.1, metrics={"loss": 1.0 / number}
    )


def save(number: int) -> Step:
    def saved(script: Script) -> Report:
        folder = script.plan.work_dir / "checkpoints" / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        (folder / "state.bin").write_bytes(bytes([number]) * 100)
        return Saved(step=number, path=folder, metrics={})

    return saved


def write_adapter(folder: Path, value: float) -> None:
    """A LoRA of rank 1 on one module of the base."""
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{name}.lora_A.weight": np.full((1, 64), value, np.float32),
            f"{name}.lora_B.weight": np.full((64, 1), value, np.float32),
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def finish(script: Script) -> Report:
    folder = script.plan.work_dir / "adapter"
    write_adapter(folder, value=0.5)
    probe = Probe(token_ids=(1, 2), prompt_tokens=1, logprobs=(-1.0,), base_logprobs=(-2.0,))
    return Finished(
        path=folder,
        kind="lora",
        training_s=1.0,
        metrics={},
        probes=(probe,),
        contract=CONTRACT,
    )


def wait_for_word(script: Script) -> Report | None:
    """Stay quiet until told to stop, then stop as told."""
    time.sleep(0.01)
    if not script.told:
        return None
    return Stopped(directive="cancel" if script.told[-1] == "cancel" else "pause")


@pytest.fixture
def run(make_house: Callable[..., House]) -> Callable[..., tuple[House, Job, Scripted]]:
    def run_scripts(
        *scripts: list[Step],
        during: Callable[[House, str], None] | None = None,
        objects: Any = None,
        **settings: Any,
    ) -> tuple[House, Job, Scripted]:
        house = make_house(**settings)
        if objects is not None:
            house.objects = objects
        job_id = house.submit(house.add_dataset(conversations(3)))

        def begin(script: Script) -> None:
            if during is not None:
                during(house, job_id)

        first, *others = scripts
        launcher = Scripted([begin, *first], *others)
        runner, _ = runner_of(house, launcher)
        for _ in scripts:
            runner.run_next("default")
        return house, house.job(job_id), launcher

    return run_scripts


def runner_of(
    house: House, launcher: Scripted, *, drain_s: float = 30.0
) -> tuple[Runner, Workshop]:
    root = house.settings.data_dir / "work"
    root.mkdir(exist_ok=True)
    shop = Workshop(
        store=house.store,
        objects=house.objects,
        bases=house.bases,
        launcher=launcher,
        threads=1,
        drain_s=drain_s,
    )
    runner = Runner(
        shop,
        owner="test",
        work_root=root,
        heartbeat_s=house.settings.heartbeat_s,
        lease_s=house.settings.lease_s,
    )
    return runner, shop


def test_what_was_expected_and_what_it_took_stand_on_the_job(
    run: Callable[..., tuple[House, Job, Scripted]],
) -> None:
    def begin(script: Script) -> Report:
        return Started(
            total_steps=9, rows=3, trained_tokens=33, trainable_parameters=1, resumed_step=0
        )

    _, job, _ = run([begin, step(1), finish])

    assert job.status is Status.SUCCEEDED
    assert job.estimate is not None
    assert job.actual is not None
    assert (job.estimate.rows, job.estimate.trained_rows) == (3, 3)
    assert job.estimate.steps == 3
    assert (job.actual.trained_tokens, job.actual.seconds) == (33, 1.0)


def published(house: House, job: Job, attempt: int) -> bool:
    try:
        registry.read_manifest(house.objects, house.tenant_id, adapter_id_of(job.id, attempt))
    except AdapterMissing:
        return False
    return True


def last_message(house: House, job: Job) -> str:
    events, _ = house.store.jobs.events(house.tenant_id, job.id)
    return events[-1].message


def leftovers(house: House) -> list[Path]:
    return list((house.settings.data_dir / "work").iterdir())


def test_a_finished_child_becomes_an_adapter_and_an_empty_disk(run: Any) -> None:
    house, job, _ = run([step(1), save(1), step(2), finish])
    assert (job.status, job.progress.step) == (Status.SUCCEEDED, 2)
    assert published(house, job, 1)
    assert [c.step for c in house.store.jobs.checkpoints(house.tenant_id, job.id)] == [1]
    assert leftovers(house) == []


def test_only_the_newest_checkpoints_are_kept(run: Any) -> None:
    house, job, _ = run([save(n) for n in (1, 2, 3, 4)] + [finish])
    steps = [c.step for c in house.store.jobs.checkpoints(house.tenant_id, job.id)]
    assert steps == [4, 3]
    kept = [info.key for info in house.objects.list(f"tenants/{house.tenant_id}/jobs/")]
    assert len(kept) == 2, kept


def test_the_next_attempt_resumes_from_the_checkpoint_and_clears_what_was_left(run: Any) -> None:
    def crash_after_publishing(script: Script) -> Report | None:
        raise EOFError

    house, job, launcher = run([save(5), crash_after_publishing], [finish])
    assert job.status is Status.SUCCEEDED
    assert job.attempt == 2
    resume = launcher.started[1].plan.resume_from
    assert resume is not None
    assert resume.name == "checkpoint-5"
    assert not published(house, job, 1)
    assert published(house, job, 2)


def test_a_lost_lease_kills_the_child_and_writes_nothing_more(run: Any) -> None:
    def take_away(house: House, job_id: str) -> None:
        with house.store.database.write() as connection:
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(attempt=7))

    house, job, launcher = run([wait_for_word, finish], during=take_away)
    assert launcher.started[0].killed
    assert (job.status, job.attempt, job.adapter_id) == (Status.RUNNING, 7, None)
    assert leftovers(house) == []


def test_cancel_reaches_the_child(run: Any) -> None:
    house, job, launcher = run(
        [wait_for_word], during=lambda house, id: house.store.jobs.cancel(house.tenant_id, id)
    )
    assert launcher.started[0].told == ["cancel"]
    assert job.status is Status.CANCELLED
    assert house.store.adapters.page(house.tenant_id).data == []


def test_a_cancel_in_the_last_moment_leaves_no_adapter(run: Any) -> None:
    def cancel_and_finish(script: Script) -> Report:
        house_of["it"].store.jobs.cancel(house_of["it"].tenant_id, house_of["job"])
        return finish(script)

    house_of: dict[str, Any] = {}

    def remember(house: House, job_id: str) -> None:
        house_of.update(it=house, job=job_id)

    def until_known(script: Script) -> Report | None:
        while not house_of:
            time.sleep(0.01)
        return None

    house, job, _ = run([until_known, cancel_and_finish], during=remember)
    assert (job.status, job.adapter_id) == (Status.CANCELLED, None)
    assert not published(house, job, 1)


def test_a_failure_of_the_trainer_is_the_jobs_with_its_advice(run: Any) -> None:
    failed = Failed(code="diverged", message="loss is nan; lower `method.learning_rate`.")
    _, job, _ = run([lambda script: failed])
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "diverged"


def test_a_result_with_nan_in_it_is_never_published(run: Any) -> None:
    def finish_with_nan(script: Script) -> Report | None:
        report = finish(script)
        shutil.rmtree(script.plan.work_dir / "adapter")
        write_adapter(script.plan.work_dir / "adapter", value=float("nan"))
        return report

    house, job, _ = run([finish_with_nan])
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "nan_weights"
    assert not published(house, job, 1)


def test_a_damaged_checkpoint_is_never_resumed_from(make_house: Callable[..., House]) -> None:
    house = make_house(max_attempts=5)
    job_id = house.submit(house.add_dataset(conversations(3)))
    launcher = Scripted([save(2), save(3)], [finish])
    runner, _ = runner_of(house, launcher)
    runner.run_next("default")
    _, key = [i.key for i in house.objects.list(f"tenants/{house.tenant_id}/jobs/")]
    house.objects.put(key, b"rotten")
    runner.run_next("default")
    job = house.job(job_id)
    assert len(launcher.started) == 1, "no trainer was started from it"
    assert job.status is Status.QUEUED
    events, _ = house.store.jobs.events(house.tenant_id, job_id)
    assert "state.bin" in events[-1].message
    runner.run_next("default")
    assert house.job(job_id).status is Status.SUCCEEDED
    resume = launcher.started[1].plan.resume_from
    assert resume is not None
    assert resume.name == "checkpoint-2", "the one before it"


class Flaky(MemoryStore):
    """Objects that cannot be written once an adapter is on its way."""

    def writer(self, key: str) -> Any:
        if "/adapters/" in key:
            raise StorageUnavailable("the store is away")
        return super().writer(key)


def test_a_store_that_fails_while_publishing_costs_an_attempt_and_shows_nothing(run: Any) -> None:
    house, job, _ = run([finish], objects=Flaky())
    assert job.status is Status.QUEUED
    assert not published(house, job, 1)
    assert house.store.adapters.page(house.tenant_id).data == []


def test_a_draining_runner_hands_its_job_back(make_house: Callable[..., House]) -> None:
    house = make_house()
    job_id = house.submit(house.add_dataset(conversations(3)))
    launcher = Scripted([lambda script: shop.draining.set(), wait_for_word])
    runner, shop = runner_of(house, launcher)
    runner.run_next("default")
    assert launcher.started[0].told == ["pause"]
    assert house.job(job_id).status is Status.QUEUED
    assert runner.run_next("default") is False, "and takes no other"


def hang(script: Script) -> Report | None:
    """Hear nothing, say nothing."""
    time.sleep(0.01)
    return None


def test_a_draining_runner_does_not_wait_for_a_child_that_does_not_stop(
    make_house: Callable[..., House],
) -> None:
    house = make_house(max_attempts=1)
    job_id = house.submit(house.add_dataset(conversations(3)))
    launcher = Scripted([lambda script: shop.draining.set(), *[hang] * 500])
    runner, shop = runner_of(house, launcher, drain_s=0.2)
    runner.run_next("default")
    assert launcher.started[0].killed
    assert house.job(job_id).status is Status.QUEUED, "and it is not charged"


@pytest.mark.parametrize("steps", [0, 1])
def test_a_pause_waits_for_a_step_but_not_for_the_first(
    make_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """A child that reads rows for minutes has nothing to keep yet."""
    monkeypatch.setattr("jobs.attempt.STOP_GRACE_S", 0.2)
    house = make_house()
    job_id = house.submit(house.add_dataset(conversations(3)))

    def pause(script: Script) -> None:
        house.store.jobs.pause(house.tenant_id, job_id)

    slow = [hang] * 300
    launcher = Scripted([*[step(1)] * steps, pause, *slow, wait_for_word])
    runner, _ = runner_of(house, launcher)
    runner.run_next("default")
    assert launcher.started[0].told == ["pause"]
    assert (launcher.started[0].left == 0) is (steps > 0)
    assert house.job(job_id).status is Status.PAUSED


class NoCheckpoints(MemoryStore):
    """Objects that take everything but checkpoints."""

    def put_file(self, key: str, path: Path) -> None:
        if "/checkpoints/" in key:
            raise StorageUnavailable("the store is away")
        super().put_file(key, path)


def test_a_checkpoint_that_cannot_be_stored_does_not_cost_the_result(run: Any) -> None:
    house, job, _ = run([step(1), save(1), step(2), finish], objects=NoCheckpoints())
    assert job.status is Status.SUCCEEDED
    events, _ = house.store.jobs.events(house.tenant_id, job.id)
    assert [e.message for e in events if e.level == "warn"] == [
        "A checkpoint could not be stored; the job goes on without it."
    ]


def test_a_failure_is_told_as_it_was_whatever_became_of_the_checkpoints(run: Any) -> None:
    failed = Failed(code="diverged", message="loss is nan; lower `method.learning_rate`.")
    _, job, _ = run([save(1), lambda script: failed], objects=NoCheckpoints())
    assert job.error is not None
    assert job.error.code == "diverged"


class Away(MemoryStore):
    def ping(self) -> None:
        raise StorageUnavailable("the store is away")


def test_nothing_is_claimed_while_no_job_could_fetch_its_rows(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    job_id = house.submit(house.add_dataset(conversations(3)))
    house.objects = Away()
    runner, shop = runner_of(house, Scripted())
    threading.Timer(0.1, shop.draining.set).start()
    assert runner.run_next("default") is False
    assert (house.job(job_id).status, house.job(job_id).attempt) == (Status.QUEUED, 0)


def test_a_result_waits_for_a_database_that_is_away(make_house: Callable[..., House]) -> None:
    house = make_house()
    job_id = house.submit(house.add_dataset(conversations(3)))
    engine = house.store.database.engine

    def refuse(connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("begin", {}, Exception("the database is away"))

    def finish_alone(script: Script) -> Report | None:
        sa.event.listen(engine, "begin", refuse)
        threading.Timer(0.8, sa.event.remove, (engine, "begin", refuse)).start()
        return finish(script)

    runner, _ = runner_of(house, Scripted([step(1), finish_alone]))
    runner.run_next("default")
    job = house.job(job_id)
    assert job.status is Status.SUCCEEDED
    assert published(house, job, 1)


class AnswersLost(Leases):
    """A database that does what it is told, and goes away before it says so."""

    def succeed(self, *args: Any) -> None:
        super().succeed(*args)
        raise StoreUnavailable("the answer got lost")


def test_an_adapter_whose_row_is_there_keeps_its_files_when_the_answer_got_lost(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    job_id = house.submit(house.add_dataset(conversations(3)))
    house.store.leases = AnswersLost(house.store.database, lease_s=3.0, max_attempts=3)
    runner, _ = runner_of(house, Scripted([finish]))
    runner.run_next("default")
    job = house.job(job_id)
    assert job.status is Status.SUCCEEDED
    assert published(house, job, 1)


def test_a_fault_of_the_worker_costs_an_attempt_at_once(make_house: Callable[..., House]) -> None:
    house = make_house(max_attempts=1)
    job_id = house.submit(house.add_dataset(conversations(3)))
    runner, _ = runner_of(house, Scripted())  # it has nothing to start: an IndexError
    assert runner.run_next("default") is True
    job = house.job(job_id)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "internal_error"
    assert leftovers(house) == []


def test_a_disk_that_takes_no_folder_costs_an_attempt_and_says_so(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    job_id = house.submit(house.add_dataset(conversations(3)))
    runner, _ = runner_of(house, Scripted())
    root = house.settings.data_dir / "work"
    root.rmdir()
    root.write_text("no folder")
    runner.run_next("default")
    job = house.job(job_id)
    assert job.status is Status.QUEUED
    assert "disk failed" in last_message(house, job)


def test_a_resumed_job_shows_where_it_goes_on_from(run: Any) -> None:
    counts = {"total_steps": 9, "rows": 3, "trained_tokens": 9, "trainable_parameters": 1}
    started = Started(resumed_step=5, **counts)
    failed = Failed(code="diverged", message="no")
    _, job, _ = run([lambda script: started, lambda script: failed])
    assert (job.progress.step, job.progress.total_steps) == (5, 9)


def test_what_a_client_reads_of_a_store_that_fails_names_no_key(
    make_house: Callable[..., House],
) -> None:
    house = make_house(max_attempts=1)
    job_id = house.submit(house.add_dataset(conversations(3)))
    house.objects.delete_prefix(f"tenants/{house.tenant_id}/")
    runner, _ = runner_of(house, Scripted())
    runner.run_next("default")
    error = house.job(job_id).error
    assert error is not None
    assert error.code == "storage_error"
    assert house.tenant_id not in error.message
