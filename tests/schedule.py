"""In which order pytest's processes take the files: long ones first, so that none ends alone.

And which of them are one's: those that share a service that takes long to be there.
"""

from pathlib import PurePosixPath

import pytest
from xdist.scheduler import LoadFileScheduling

# Of 30 seconds and more. Few tests each, so pytest-xdist would leave them for the end.
LONG = {
    "tests/chaos/test_claims.py",
    "tests/chaos/test_kills.py",
    "tests/cli/test_demo.py",
    "tests/cli/test_commands.py",
    "tests/cli/test_pipeline.py",
    "tests/cli/test_serve.py",
    "tests/engine/train/test_judges.py",
    "tests/engine/train/test_online.py",
    "tests/jobs/kubernetes/test_attempts.py",
    "tests/jobs/test_judge_runs.py",
    "tests/jobs/test_worker.py",
    "tests/k8s/test_image.py",
    "tests/test_end_to_end.py",
    "tests/test_graded_end_to_end.py",
    "tests/v1/test_litellm.py",
}
# By a file of each: the name of what they share, of session scope.
TOGETHER = {
    "tests/cli/test_commands.py": "a service",
    "tests/cli/test_merge.py": "a service",
    "tests/cli/test_pipeline.py": "a service",
    "tests/cli/test_serve.py": "a service",
    "tests/engine/train/test_judges.py": "manners",
    "tests/engine/train/test_online.py": "manners",
    "tests/jobs/test_pipeline_runs.py": "a worker",
    "tests/jobs/test_promotion.py": "a worker",
    "tests/jobs/test_worker.py": "a worker",
    "tests/v1/test_litellm.py": "a house",
    "tests/v1/test_lm_eval.py": "a house",
    "tests/v1/test_npm.py": "a house",
}


class LongestFirst(LoadFileScheduling):
    """As `--dist loadfile`, in the order of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return TOGETHER.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LongestFirst | None:
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return LongestFirst(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _file(config, item) not in LONG)


def _file(config: pytest.Config, item: pytest.Item) -> str:
    return str(PurePosixPath(item.path.relative_to(config.rootpath)))
