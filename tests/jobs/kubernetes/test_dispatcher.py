"""What the dispatcher does with jobs and their pods; the pods here only end, as they are told."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest

from jobs.exit_codes import Exit
from jobs.kubernetes.cluster import JOBS, Cluster, ClusterRefused, ClusterUnavailable, Token
from jobs.kubernetes.manifest import name_of
from jobs.kubernetes.template import TemplateInvalid, merged, read_template
from jobs.model import Status
from tests.jobs.kubernetes.api_server import NAMESPACE, wait_for
from tests.jobs.kubernetes.cluster import TEMPLATE, MakeHouse, Yard, yard
from tests.record import Record

GPUS_TAKEN = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/5 nodes are available: 5 Insufficient nvidia.com/gpu. preemption: none.",
        }
    ]
}
NO_IMAGE = {
    "containerStatuses": [
        {"name": "trainer", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "…"}}}
    ]
}


@pytest.fixture
def here(make_house: MakeHouse, tmp_path: Path) -> Iterator[Yard]:
    with yard(make_house, tmp_path, train_device="cuda") as made:
        made.api.program = lambda command: [sys.executable, "-c", "import time; time.sleep(600)"]
        yield made


def ends_with(code: int) -> Any:
    return lambda command: [sys.executable, "-c", f"raise SystemExit({code})"]


def test_a_queued_job_is_one_object_whoever_sees_it(here: Yard) -> None:
    job_id = here.submit()
    here.dispatcher().turn()
    here.dispatcher().turn()
    name = name_of(job_id, 1)
    assert here.api.created == [name]
    made = here.api.jobs[name]
    assert not here.cluster().create(JOBS, made | {"status": {}}), "it is there"

    spec = made["spec"]
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    trainer = spec["template"]["spec"]["containers"][0]
    assert trainer["command"] == ["luthier", "attempt", job_id, "1"]
    assert trainer["resources"]["limits"] == {"memory": "2Gi", "nvidia.com/gpu": "1"}
    assert trainer["envFrom"], "the operator's template is in it"
    assert here.house.job(job_id).status is Status.QUEUED, "until its pod has claimed it"


def test_a_job_that_kueue_has_not_admitted_says_what_it_waits_for_once(
    make_house: MakeHouse, tmp_path: Path
) -> None:
    with yard(make_house, tmp_path, kubernetes_local_queue="team-a") as here:
        here.api.program = ends_with(0)
        job_id = here.submit()
        for _ in range(3):
            here.dispatcher().turn()
        made = here.api.jobs[name_of(job_id, 1)]
        assert made["spec"]["suspend"] is True
        assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
        assert not here.api.pods
        told = [text for text in here.messages(job_id) if "capacity" in text]
        assert told == ["Waiting for capacity: its queue has not admitted the attempt yet."]
        here.api.admit()
        assert here.api.pods


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (GPUS_TAKEN, "Waiting for capacity: no machine has enough GPUs free."),
        (
            NO_IMAGE,
            "The attempt's image does not come (ImagePullBackOff); the operator has to look.",
        ),
    ],
)
def test_what_a_pod_waits_for_is_told_once(here: Yard, problem: dict[str, Any], told: str) -> None:
    here.api.problem = problem
    job_id = here.submit()
    for _ in range(3):
        here.dispatcher().turn()
    assert here.messages(job_id) == ["queued", told]


@pytest.mark.parametrize("change", ["cancel", "pause"])
def test_what_its_client_puts_aside_while_it_waits_leaves_the_cluster_at_once(
    here: Yard, change: str
) -> None:
    here.api.problem = GPUS_TAKEN
    job_id = here.submit()
    here.dispatcher().turn()
    getattr(here.house.store.jobs, change)(here.house.tenant_id, job_id)
    here.dispatcher().turn()
    assert not here.api.jobs


def test_pods_that_die_before_they_begin_are_charged_with_the_cause(here: Yard) -> None:
    here.api.program = ends_with(137)
    job_id = here.submit()
    for attempt in (1, 2):  # memory that was too small twice is too small
        here.dispatcher().turn()
        wait_for(lambda attempt=attempt: here.exit_codes(job_id, attempt) == [137])
        here.dispatcher().turn()
    job = here.house.job(job_id)
    assert (job.status, job.attempt) == (Status.FAILED, 2)
    assert job.error is not None
    assert job.error.code == "out_of_memory"
    assert here.api.created == [name_of(job_id, attempt) for attempt in (1, 2)]


def test_a_pod_that_dies_while_the_dispatcher_looks_is_charged_too(here: Yard) -> None:
    job_id = here.submit()
    here.dispatcher().turn()
    name, look = name_of(job_id, 1), here.api.find

    def find(plural: str, selector: str) -> list[Any]:
        seen = look(plural, selector)
        if not here.api.condition(name):
            here.api.run_out_of_memory(name)
            wait_for(lambda: here.api.condition(name) != "")
        return seen

    here.api.find = find  # type: ignore[method-assign]  # the pod ends after the first look
    for _ in range(2):
        here.dispatcher().turn()
    assert here.house.job(job_id).attempt == 1
    assert "killed for lack of memory" in here.messages(job_id)[-1]
    assert here.api.created == [name, name_of(job_id, 2)]


@pytest.mark.parametrize("code", [Exit.RETRYABLE, 143])
def test_a_pod_that_was_stopped_before_it_began_costs_nothing(here: Yard, code: int) -> None:
    here.api.program = ends_with(code)
    job_id = here.submit()
    here.dispatcher().turn()
    wait_for(lambda: here.exit_codes(job_id, 1) == [code])
    here.dispatcher().turn()
    assert not here.api.jobs
    here.dispatcher().turn()
    assert here.api.created == [name_of(job_id, 1)] * 2
    assert here.house.job(job_id).attempt == 0


def test_a_pod_that_is_killed_in_its_attempt_ends_it_before_the_lease_does(
    here: Yard, record: Record
) -> None:
    job_id = here.submit()
    here.dispatcher().turn()
    assert here.house.store.leases.claim_attempt("its pod", job_id, 1) is not None
    here.dispatcher().turn()
    assert here.house.job(job_id).status is Status.RUNNING
    here.api.run_out_of_memory(name_of(job_id, 1))
    wait_for(lambda: here.exit_codes(job_id, 1) == [137])
    assert here.api.condition(name_of(job_id, 1)) == "Failed BackoffLimitExceeded"
    here.dispatcher().turn()
    job = here.house.job(job_id)
    record("R25", "status of a job whose pod was OOMKilled", str(job.status), exactly="queued")
    assert job.attempt == 1
    assert "killed for lack of memory" in here.messages(job_id)[-1]
    here.dispatcher().turn()
    assert here.api.created == [name_of(job_id, 1), name_of(job_id, 2)]


def test_what_runs_on_after_its_end_is_deleted_when_it_had_time_to_leave(here: Yard) -> None:
    job_id = here.submit()
    dispatcher = here.dispatcher(over_s=0.5)
    dispatcher.turn()
    here.house.store.leases.claim_attempt("its pod", job_id, 1)
    here.house.store.jobs.cancel(here.house.tenant_id, job_id)
    dispatcher.turn()
    assert "deletionTimestamp" not in here.api.jobs[name_of(job_id, 1)]["metadata"]
    wait_for(lambda: dispatcher.turn() or not here.api.jobs)  # type: ignore[func-returns-value]


def test_an_attempt_that_is_another_ones_by_now_leaves_the_cluster(here: Yard) -> None:
    here.api.problem = GPUS_TAKEN
    job_id = here.submit()
    here.dispatcher().turn()
    here.house.store.leases.claim_attempt("a worker of the same class", job_id, 1)
    here.house.store.leases.release(job_id, 1)
    here.dispatcher().turn()
    assert list(here.api.jobs) == [name_of(job_id, 2)]


def test_no_more_jobs_are_handed_over_than_may_be_at_once(
    make_house: MakeHouse, tmp_path: Path
) -> None:
    with yard(make_house, tmp_path, kubernetes_max_jobs=2) as here:
        here.api.problem = GPUS_TAKEN
        ids = [here.submit() for _ in range(3)]
        for _ in range(2):
            here.dispatcher().turn()
        assert here.api.created == [name_of(job_id, 1) for job_id in ids[:2]]


def test_a_field_that_the_cluster_does_not_know_is_told_and_nothing_is_lost(
    make_house: MakeHouse, tmp_path: Path
) -> None:
    wrong = TEMPLATE.replace("automountServiceAccountToken", "automountServiceAcountToken")
    with yard(make_house, tmp_path, template=wrong) as here:
        job_id = here.submit()
        here.dispatcher().turn()
        told = "The cluster refuses the attempt; the operator has to look."
        assert here.messages(job_id) == ["queued", told]
        assert not here.api.jobs


def test_a_cluster_that_is_away_is_told_apart_from_one_that_refuses(here: Yard) -> None:
    made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spek": {}}
    with pytest.raises(ClusterRefused, match="spek"):
        here.cluster().create(JOBS, made)
    nowhere = Cluster("http://127.0.0.1:9", NAMESPACE)
    with pytest.raises(ClusterUnavailable, match="does not answer"):
        list(nowhere.list(JOBS, "a=b"))
    nowhere.close()


def test_in_a_pod_its_service_account_says_where_and_who(tmp_path: Path) -> None:
    (tmp_path / "namespace").write_text("luthier\n")
    (tmp_path / "token").write_text("first")
    (tmp_path / "ca.crt").write_bytes(Path(certifi.where()).read_bytes())
    cluster = Cluster(account=tmp_path)
    assert cluster.namespace == "luthier"
    cluster.close()
    token, request = (
        Token(tmp_path / "token"),
        httpx.Request("GET", "https://kubernetes.default.svc"),
    )
    for text in ("first", "renewed"):
        (tmp_path / "token").write_text(text)
        assert next(token.auth_flow(request)).headers["authorization"] == f"Bearer {text}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spec: [", "does not read"),
        ("metadata: {}", "has no `spec`"),
        ("kind: Pod\nspec: {containers: []}", "has kind"),
        ("spec: {containers: [{name: main, image: x}]}", "named 'trainer'"),
        ("spec: {containers: [{name: trainer}]}", "with an image"),
    ],
)
def test_a_template_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    with pytest.raises(TemplateInvalid, match=said):
        read_template(path)


def test_what_the_template_may_not_say_is_named() -> None:
    ours = {"spec": {"restartPolicy": "Never", "containers": [{"name": "trainer", "command": []}]}}
    theirs = {"spec": {"restartPolicy": "Always"}}
    with pytest.raises(TemplateInvalid, match=r"sets spec\.restartPolicy to 'Always'"):
        merged(theirs, ours)
    theirs = {"spec": {"containers": [{"name": "trainer", "command": ["sh"]}]}}
    with pytest.raises(TemplateInvalid, match=r"spec\.containers\[trainer\]\.command"):
        merged(theirs, ours)
    theirs = {"spec": {"containers": [{"name": "proxy"}, {"name": "trainer", "tty": True}]}}
    assert merged(theirs, ours)["spec"]["containers"] == [
        {"name": "proxy"},
        {"name": "trainer", "tty": True, "command": []},
    ]
