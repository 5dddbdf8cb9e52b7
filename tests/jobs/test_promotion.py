"""A checkpoint of a real run, published: the bytes of a run that ended there."""

from pathlib import Path
from typing import Any

import pytest

from engine.render import load_renderer
from engine.spec import FullPeft, LoraPeft, Peft
from jobs.model import Adapter, Status
from jobs.promotion import promote
from tests.jobs.conftest import Workshop
from tests.workers import conversations

STEADY = {"lr_scheduler_type": "constant", "warmup_ratio": 0, "learning_rate": 2e-3}


def files(adapter: Adapter) -> dict[str, Any]:
    return {entry["name"]: entry["sha256"] for entry in adapter.manifest["files"]}


@pytest.mark.parametrize("peft", [LoraPeft(r=4), FullPeft()])
def test_a_checkpoint_is_the_adapter_of_a_job_that_ended_there(
    workshop: Workshop, tmp_path: Path, peft: Peft
) -> None:
    house = workshop.house
    rows = house.add_dataset(conversations(40))
    long = house.wait(house.submit(rows, peft=peft, max_steps=4, checkpoint_every=2, **STEADY))
    short = house.wait(house.submit(rows, peft=peft, max_steps=2, **STEADY))
    assert long.status is short.status is Status.SUCCEEDED, (long.error, short.error)
    checkpoint = house.store.jobs.checkpoints(house.tenant_id, long.id)[-1]
    base = house.bases.find("tiny", weights=True)
    contract = load_renderer(base.path).contract.model_dump(mode="json")

    made = promote(house.store, house.objects, long, checkpoint, base, contract, tmp_path)

    assert short.adapter_id is not None
    assert long.adapter_id is not None
    ended = house.store.adapters.get(house.tenant_id, short.adapter_id)
    assert files(made) == files(ended)
    assert files(made) != files(house.store.adapters.get(house.tenant_id, long.adapter_id))
    assert made.manifest["contract"] == ended.manifest["contract"]
    assert (made.manifest["lineage"]["step"], checkpoint.step) == (2, 2)
