"""What several files of training tests start from."""

import json
from pathlib import Path

import pytest

from engine.spec import LoraPeft, SftMethod
from tests.engine.train.runs import train
from tests.workers import REPO


@pytest.fixture(scope="session")
def both_manners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that answers kindly as often as not, so that there is something to choose."""
    method = SftMethod(max_steps=40, learning_rate=2e-3, max_length=64)
    work_dir = tmp_path_factory.mktemp("start") / "run"
    lines = (REPO / "examples" / "data" / "demonstrations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    tiny = REPO / "examples" / "models" / "luthier-tiny"
    return train(tiny, work_dir, method, LoraPeft(r=8), rows=rows, checkpoint_every=99)[0].path
