"""The table: every exception of ours has a row, and each row its headers."""

import importlib
import json
import pkgutil
from types import ModuleType

import pytest
from starlette.responses import Response

import adapters
import api
import engine
import jobs
import storage
from adapters.errors import AdapterError, AdapterInvalid
from api.errors import TABLE, ApiError, answer, row_of
from api.middleware import AnswerBroken
from engine.bases import BaseNotAllowed
from engine.errors import EngineError
from engine.rows import DatasetInvalid, Problem
from jobs.errors import Conflict as JobConflict
from jobs.errors import JobsError, NotFound, QuotaExceeded, SpecInvalid, SpecProblem
from jobs.kubernetes.cluster import ClusterRefused, ClusterUnavailable, KubernetesError
from jobs.kubernetes.template import TemplateInvalid
from storage.objects import ObjectExists, ObjectNotFound, StorageError, StorageUnavailable

ROOTS = (ApiError, JobsError, EngineError, AdapterError, StorageError)
# Raised in other processes; the last one in this too, and a fault like any StorageError.
HEAVY = ("engine.train", "engine.infer")
ELSEWHERE = ("jobs.attempt", "storage.s3_calls")
# Nor are those of a dispatcher, which answers nobody.
NO_ANSWER = (AnswerBroken, KubernetesError, ClusterRefused, ClusterUnavailable, TemplateInvalid)


def exceptions_of(package: ModuleType) -> set[type[Exception]]:
    found: set[type[Exception]] = set()
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name.startswith((*HEAVY, "jobs.migrations")):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Exception):
                found.add(value)
    return {
        kind
        for kind in found
        if kind.__module__.startswith(f"{package.__name__}.") and kind.__module__ not in ELSEWHERE
    }


@pytest.mark.parametrize("package", [adapters, api, engine, jobs, storage])
def test_every_exception_has_a_row_of_its_own_or_inherits_one(package: ModuleType) -> None:
    seen = exceptions_of(package)
    assert seen
    without = {
        kind.__qualname__
        for kind in seen - {*ROOTS, *NO_ANSWER}
        if issubclass(kind, ROOTS) and row_of(kind) in (None, TABLE[StorageError])
    }
    assert without == set()


def error_of(response: Response) -> dict[str, object]:
    found: dict[str, object] = json.loads(bytes(response.body))["error"]
    return found


def test_a_conflict_tells_clients_not_to_repeat_it() -> None:
    response = answer(JobConflict("no"), "req")
    assert (response.status_code, response.headers["x-should-retry"]) == (409, "false")


@pytest.mark.parametrize("error", [QuotaExceeded("full"), StorageUnavailable("down")])
def test_what_may_pass_says_when_to_try_again(error: Exception) -> None:
    response = answer(error, "req")
    assert response.status_code in (429, 503)
    assert int(response.headers["retry-after"]) > 0


def test_foreign_and_unknown_ids_differ_in_the_id_alone() -> None:
    one = bytes(answer(NotFound("job", "job_1"), "a").body)
    two = bytes(answer(NotFound("job", "job_2"), "b").body)
    assert one.replace(b"job_1", b"job_2") == two


def test_storage_faults_do_not_name_objects() -> None:
    for kind in (ObjectNotFound, ObjectExists):
        assert b"tenants/tn_" not in bytes(answer(kind("tenants/tn_1/x"), "req").body)
    for text in (StorageUnavailable, StorageError):
        assert b"tenants/tn_" not in bytes(answer(text("tenants/tn_1/x"), "req").body)


def test_an_adapter_defect_has_its_own_code() -> None:
    error = error_of(answer(AdapterInvalid("nan_weights", "lora_A has NaN"), "req"))
    assert (error["code"], error["message"]) == ("nan_weights", "lora_A has NaN")


def test_a_job_is_refused_with_all_reasons() -> None:
    problems = [SpecProblem("peft.r", "rank_too_high", "lower it."), SpecProblem("x", "y", "z.")]
    response = answer(SpecInvalid(problems), "req")
    error = error_of(response)
    assert response.status_code == 422
    assert (error["code"], error["param"], error["total_problems"]) == (
        "rank_too_high",
        "peft.r",
        2,
    )
    assert error["problems"] == [
        {"line": None, "field": "peft.r", "message": "lower it.", "code": "rank_too_high"},
        {"line": None, "field": "x", "message": "z.", "code": "y"},
    ]


def test_a_dataset_is_refused_by_line_and_field() -> None:
    problem = Problem(line=3, field="prompt", message="is a number")
    error = error_of(answer(DatasetInvalid((problem,), 40), "req"))
    assert (error["code"], error["total_problems"]) == ("dataset_invalid", 40)
    assert error["problems"] == [
        {"line": 3, "field": "prompt", "message": "is a number", "code": None}
    ]


def test_a_lone_surrogate_in_a_message_can_still_be_sent() -> None:
    response = answer(BaseNotAllowed("no \ud800 here"), "req")
    assert response.status_code == 422
    assert b"\\ud800" in bytes(response.body)
