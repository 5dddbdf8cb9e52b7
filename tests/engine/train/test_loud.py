"""What used to go wrong without a word: padding that is an end, a loss that is nothing."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from engine.examples import IGNORED, read_conversation
from engine.render import load_renderer
from engine.rows import Conversation, Message
from engine.train.collators import padded
from engine.train.errors import TrainingFailed
from engine.train.watch import Watch
from tests.bases import make_base
from tests.engine.train.runs import Reports

SHORT: dict[str, Any] = {"max_length": 64, "per_device_batch_size": 2}


@pytest.fixture(scope="module")
def unpadded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that names no padding token, so that its end-of-sequence token has to do."""
    base = make_base(tmp_path_factory.mktemp("base"))
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        kept = json.loads((base / name).read_text())
        kept.pop("pad_token", None)
        kept.pop("pad_token_id", None)
        (base / name).write_text(json.dumps(kept))
    return base


def test_the_end_is_learned_where_it_is_also_the_padding(unpadded: Path) -> None:
    renderer = load_renderer(unpadded)
    end = renderer.contract.eos_token_id
    assert renderer.contract.pad_token_id == end
    turns = [Message(role="user", content="say"), Message(role="assistant", content="it is 7")]
    longer = [turns[0], Message(role="assistant", content="it is the number it is")]
    rows = [Conversation(messages=tuple(said)) for said in (turns, longer)]
    short, long = (read_conversation(row, renderer, 64).examples[0] for row in rows)

    columns = [{"input_ids": e.input_ids, "labels": e.labels} for e in (short, long)]
    batch = DataCollatorForLanguageModeling(end)(columns)
    own = padded([short, long], end)

    last = len(short.input_ids) - 1
    assert short.labels[last] == end
    assert batch["labels"][0, last] == end
    assert set(batch["labels"][0, last + 1 :].tolist()) == {IGNORED}
    for attention in (batch["attention_mask"], own["attention_mask"]):
        assert attention[0].tolist() == [1] * (last + 1) + [0] * (attention.shape[1] - last - 1)


def logged(watch: Watch, *losses: float) -> None:
    state = TrainerState()
    for step, loss in enumerate(losses, start=1):
        state.global_step, state.max_steps = step, 99
        logs = {"loss": loss, "epoch": 0.1}
        state.log_history.append(logs)
        arguments = TrainingArguments(output_dir="unused", report_to=[], use_cpu=True)
        watch.on_log(arguments, state, TrainerControl(), logs=dict(logs))


def test_a_loss_of_exactly_nothing_is_told_once(tmp_path: Path) -> None:
    reports = Reports(tmp_path, "continue")
    logged(Watch(reports), 1.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0)  # type: ignore[arg-type]
    (warning,) = reports.warnings
    assert warning.startswith("The loss was exactly 0 for 3 steps, up to step 7")


def test_a_loss_of_nothing_is_no_news_where_advantages_add_up_to_it(tmp_path: Path) -> None:
    reports = Reports(tmp_path, "continue")
    watch = Watch(reports, zero_is_odd=False)  # type: ignore[arg-type]
    logged(watch, 0.0, 0.0, 0.0, 0.0)
    assert reports.warnings == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, loss: float) -> None:
    with pytest.raises(TrainingFailed, match=r"step 2; lower `method\.learning_rate`"):
        logged(Watch(Reports(tmp_path, "continue")), 1.0, loss)  # type: ignore[arg-type]
