"""SFT on a real, small model, in this process."""

from pathlib import Path

import pytest

from engine.spec import LoraPeft, SftMethod
from engine.train.errors import TrainingFailed
from tests.bases import make_base
from tests.engine.train.runs import train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def test_a_checkpoint_is_a_flat_folder_whatever_the_tokenizer_brings(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    others = base / "additional_chat_templates"
    others.mkdir()
    (others / "tool_use.jinja").write_text("{{ messages }}")
    method = SftMethod(max_steps=2, learning_rate=1e-3)
    _, reports = train(base, tmp_path / "run", method, LoraPeft(r=4))
    (checkpoint,) = reports.checkpoints.iterdir()
    assert all(path.is_file() for path in checkpoint.iterdir())


def test_a_run_that_diverges_in_its_last_step_is_told_so(base: Path, tmp_path: Path) -> None:
    method = SftMethod(max_steps=1, learning_rate=1.0, warmup_ratio=0)
    with pytest.raises(TrainingFailed, match=r"`method\.learning_rate`") as failed:
        train(base, tmp_path / "run", method, LoraPeft(r=2, lora_alpha=1e20))
    assert failed.value.code == "diverged"
