"""A reward model that starts from an adapter: its weights, and its head where it has one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import set_seed

from engine.plan import Finished
from engine.spec import FullPeft, LoraPeft, Peft, QloraPeft, RewardMethod, SftMethod
from engine.train.actor_critic import ActorCritic, Answers
from engine.train.errors import TrainingFailed
from engine.train.model import load_base
from engine.train.reward_model import HEAD, load_headed_base
from tests.bases import make_base
from tests.engine.infer.world import World, serve
from tests.engine.train.runs import Reports, bytes_of, train

PEFTS: dict[str, Peft] = {
    "lora": LoraPeft(r=4),
    "dora-rslora": LoraPeft(r=4, use_dora=True, use_rslora=True),
    "qlora": QloraPeft(r=4),
    "full": FullPeft(),
}
NAMES = {"full": "model.safetensors"}
STILL: dict[str, Any] = {"max_steps": 1, "learning_rate": 1e-12, "max_length": 64}  # moves nothing
ONE_BATCH: dict[str, Any] = {"per_device_batch_size": 16, "max_length": 64, "warmup_ratio": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def quantizes(request: pytest.FixtureRequest) -> None:
    if "qlora" in request.node.name:
        pytest.importorskip("bitsandbytes")


def policy(base: Path, work_dir: Path, peft: Peft) -> Finished:
    method = SftMethod(max_steps=8, learning_rate=3e-3, **ONE_BATCH)
    return train(base, work_dir, method, peft)[0]


def rewarded(base: Path, work_dir: Path, peft: Peft, **plan: Any) -> tuple[Finished, Reports]:
    method = RewardMethod(max_steps=8, learning_rate=3e-3, **ONE_BATCH)
    return train(base, work_dir, method, peft, **plan)


def weights(finished: Finished, name: str) -> dict[str, torch.Tensor]:
    return load_file(finished.path / NAMES.get(name, "adapter_model.safetensors"))


def fresh_head(base: Path, seed: int) -> torch.Tensor:
    set_seed(seed)
    return load_headed_base(base, 2).score.weight.detach().float()


@pytest.mark.parametrize("name", PEFTS)
def test_it_starts_from_the_weights_of_a_policy_with_a_new_head(
    base: Path, tmp_path: Path, name: str
) -> None:
    start = policy(base, tmp_path / "sft", PEFTS[name])
    method = RewardMethod(**STILL)
    found, _ = train(base, tmp_path / "rm", method, PEFTS[name], init_from=start.path, seed=5)
    assert found.kind == "reward"
    before, after = weights(start, name), weights(found, name)
    (head,) = (key for key in after if key.endswith(HEAD))
    assert after.keys() - {head} == before.keys() - {"lm_head.weight"}
    for key in after.keys() - {head}:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-6)
    torch.testing.assert_close(after[head], fresh_head(base, 5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PEFTS)
def test_a_reward_model_goes_on_with_its_head(base: Path, tmp_path: Path, name: str) -> None:
    start, first = rewarded(base, tmp_path / "first", PEFTS[name])
    on, reports = rewarded(base, tmp_path / "on", PEFTS[name], init_from=start.path, seed=9)
    scores = [probe.score for probe in start.scores]
    again, _ = train(
        base, tmp_path / "still", RewardMethod(**STILL), PEFTS[name], init_from=start.path, seed=9
    )
    assert [probe.score for probe in again.scores] == pytest.approx(scores, abs=1e-4)
    for key, value in weights(again, name).items():
        torch.testing.assert_close(value, weights(start, name)[key], rtol=0, atol=1e-6)
    assert reports.metrics[1]["loss"] < first.metrics[1]["loss"] - 0.02, "it begins where it ended"
    assert reports.metrics[8]["loss"] < reports.metrics[1]["loss"] - 0.02, "and goes on learning"
    assert on.kind == "reward"


@pytest.mark.parametrize("name", ["lora", "dora-rslora", "qlora"])
def test_what_comes_out_is_one_adapter_on_the_plain_base(
    base: Path, tmp_path: Path, name: str
) -> None:
    start = policy(base, tmp_path / "sft", PEFTS[name])
    found, reports = rewarded(base, tmp_path / "rm", PEFTS[name], init_from=start.path)
    assert reports.metrics[8]["loss"] < reports.metrics[1]["loss"] - 0.02, "it learns"
    config = json.loads((found.path / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["base_model_name_or_path"] == "tiny"
    expected = [probe.score for probe in found.scores]

    pad: int = found.contract["pad_token_id"]
    split = [(list(p.token_ids[:4]), list(p.token_ids[4:])) for p in found.scores]
    longest = max(len(answer) for _, answer in split)
    rows = [prompt + answer + [pad] * (longest - len(answer)) for prompt, answer in split]
    mask = torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for _, a in split])
    attention = torch.cat([torch.ones(len(rows), 4, dtype=torch.long), mask], 1)
    answers = Answers(torch.tensor(rows), attention, mask, mask[:, 0] > 0)
    policy_model = get_peft_model(load_base(base), LoraConfig(r=2, task_type="CAUSAL_LM")).eval()
    actor = ActorCritic(policy_model, reward_from=found.path, copy_reference=False)
    assert actor.rewards(answers, pad).tolist() == pytest.approx(expected, abs=1e-4)

    folder = found.path.rename(tmp_path / "ad_reward")
    manifest = found.model_dump(mode="json", include={"kind", "scores", "contract"})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    inputs = [list(probe.token_ids) for probe in found.scores]
    with serve(World(tmp_path, base), prefill_chunk=5) as client:
        answer = client.post("/v1/score", json={"model": "ad_reward", "inputs": inputs})
    assert answer.status_code == 200, answer.text
    served = [each["score"] for each in answer.json()["data"]]
    assert served == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", PEFTS)
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    base: Path, tmp_path: Path, name: str, kind: str
) -> None:
    make = policy if kind == "policy" else (lambda *args: rewarded(*args)[0])
    start = make(base, tmp_path / "start", PEFTS[name]).path
    method = RewardMethod(max_steps=4, learning_rate=1e-3, max_length=64, per_device_batch_size=2)
    given: dict[str, Any] = {"init_from": start}
    whole, reports = train(base, tmp_path / "whole", method, PEFTS[name], **given)
    folder = reports.checkpoints / "checkpoint-2"
    resumed, _ = train(base, tmp_path / "on", method, PEFTS[name], resume_from=folder, **given)
    assert bytes_of(resumed) == bytes_of(whole)
    assert resumed.scores == whole.scores
    assert not any(str(tmp_path).encode() in data for data in bytes_of(whole).values())


@pytest.mark.parametrize("method", [SftMethod, RewardMethod])
def test_dropout_is_chosen_anew(
    base: Path, tmp_path: Path, method: type[SftMethod | RewardMethod]
) -> None:
    start = train(base, tmp_path / "start", method(**STILL), LoraPeft(r=4))[0].path
    config = json.loads((start / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0
    peft = LoraPeft(r=4, lora_dropout=0.5)
    found, _ = train(base, tmp_path / "on", method(**STILL), peft, init_from=start)
    assert json.loads((found.path / "adapter_config.json").read_text())["lora_dropout"] == 0.5


def test_an_adapter_that_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    start = policy(base, tmp_path / "sft", LoraPeft(r=4)).path
    path = start / "adapter_model.safetensors"
    kept = load_file(path)
    for wrong in (
        dict(list(kept.items())[1:]),
        kept | {"base_model.model.x.lora_A.weight": torch.ones(1)},
    ):
        save_file(wrong, path)
        with pytest.raises(TrainingFailed, match="does not fit the base") as failed:
            rewarded(base, tmp_path / str(len(wrong)), LoraPeft(r=4), init_from=start)
        assert failed.value.code == "init_unusable"
