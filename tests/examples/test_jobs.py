"""The example jobs: one of each method, each of which this server would take."""

import json
from pathlib import Path

import pytest

from engine.graders import asking
from engine.spec import ROWS_OF_METHOD
from jobs.combinations import of_combination, of_grader
from jobs.inputs import grader_of, inputs_of
from jobs.model import JobSpec
from jobs.stages import PipelineSpec
from tests.workers import REPO

EXAMPLES = REPO / "examples"
JOBS = sorted((EXAMPLES / "jobs").glob("*.json"))
GRADED = sorted((EXAMPLES / "graded").glob("*.json"))


def _method(path: Path) -> str:
    """`sft_mixture.json` is of sft, as `sft.json` is."""
    return path.stem.partition("_")[0]


def test_there_is_an_example_of_every_method() -> None:
    assert {_method(path) for path in JOBS} == set(ROWS_OF_METHOD)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_an_example_is_a_job_of_its_method(path: Path) -> None:
    given = json.loads(path.read_text())
    rows = {} if "mixture" in given else {"dataset": "ds_0"}
    spec = JobSpec.model_validate(rows | given)
    assert spec.method.type == _method(path)
    assert not list(of_combination(spec))
    assert not list(of_grader(spec))


@pytest.mark.parametrize("path", GRADED, ids=lambda path: path.stem)
def test_an_example_with_a_grader_that_asks_is_a_job(path: Path) -> None:
    spec = JobSpec.model_validate({"dataset": "ds_0", **json.loads(path.read_text())})
    assert not list(of_combination(spec))
    assert not list(of_grader(spec))
    (part,) = [part for _, part in asking(grader_of(spec))]
    assert (part.model in inputs_of(spec).values()) == (path.stem == "reward_and_length")


def test_the_example_pipeline_goes_from_demonstrations_to_ppo() -> None:
    spec = json.loads((EXAMPLES / "pipeline.json").read_text())
    for stage in spec["stages"].values():
        stage["dataset"] = "ds_0"
    methods = [stage.method.type for stage in PipelineSpec.model_validate(spec).stages.values()]
    assert methods == ["sft", "reward", "ppo"]
