"""A reward model is read where it was trained to be: by the server, by PPO and by GRPO alike."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from engine.plan import Finished
from engine.rows import Message, Prompt
from engine.spec import FullPeft, LoraPeft, Peft, QloraPeft, RewardMethod
from engine.train.actor_critic import ActorCritic, Answers
from engine.train.examples import Asked
from engine.train.model import load_base
from engine.train.scorer import rewarding
from engine.train.switch import AdapterSwitch
from tests.bases import make_base
from tests.engine.infer.world import World, serve
from tests.engine.train.runs import train

PEFTS: dict[str, Peft] = {
    "lora": LoraPeft(r=4),
    "dora-rslora": LoraPeft(r=4, use_dora=True, use_rslora=True),
    "qlora": QloraPeft(r=4),
    "qlora-dora": QloraPeft(r=4, use_dora=True),
    "full": FullPeft(),
}


@pytest.fixture(scope="module", params=["with a pad token", "padded with the end of a turn"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_base(tmp_path_factory.mktemp("base"))
    if request.param != "with a pad token":
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_bytes())
        path.write_text(json.dumps(config | {"pad_token": None}))
    return folder


def reward_model(base: Path, work_dir: Path, peft: Peft) -> Finished:
    method = RewardMethod(
        max_steps=8, per_device_batch_size=4, learning_rate=3e-3, warmup_ratio=0, max_length=64
    )
    return train(base, work_dir, method, peft)[0]


def policy(base: Path) -> Any:
    return get_peft_model(load_base(base), LoraConfig(r=2, task_type="CAUSAL_LM")).eval()


@pytest.mark.parametrize("name", PEFTS)
def test_what_training_made_is_served_with_the_scores_that_training_saw(
    base: Path, tmp_path: Path, name: str
) -> None:
    if "qlora" in name:
        pytest.importorskip("bitsandbytes")
    finished = reward_model(base, tmp_path / "run", PEFTS[name])
    assert finished.kind == "reward"
    assert all(probe.token_ids[-1] == 1 for probe in finished.scores), "each ends its turn"
    folder = finished.path.rename(tmp_path / "ad_reward")
    manifest = finished.model_dump(mode="json", include={"kind", "scores", "contract"})
    (folder / "manifest.json").write_text(json.dumps(manifest))

    inputs = [list(probe.token_ids) for probe in finished.scores]
    with serve(World(tmp_path, base), prefill_chunk=5) as client:
        answer = client.post("/v1/score", json={"model": "ad_reward", "inputs": inputs})
    assert answer.status_code == 200, answer.text
    served = [each["score"] for each in answer.json()["data"]]
    assert served == pytest.approx([probe.score for probe in finished.scores], abs=1e-4)


def test_ppo_and_grpo_read_the_scores_that_training_saw(base: Path, tmp_path: Path) -> None:
    finished = reward_model(base, tmp_path / "run", LoraPeft(r=4))
    pad: int = finished.contract["pad_token_id"]
    expected = [probe.score for probe in finished.scores]
    split = [(list(p.token_ids[:4]), list(p.token_ids[4:])) for p in finished.scores]

    scorer = rewarding(AdapterSwitch(policy(base)), finished.path, pad)
    row = Prompt(prompt=(Message(role="user", content="unused"),))
    asked = [Asked(row, prompt) for prompt, _ in split]
    assert scorer(asked, [answer for _, answer in split]) == pytest.approx(expected, abs=1e-4)

    longest = max(len(answer) for _, answer in split)
    rows = [prompt + answer + [pad] * (longest - len(answer)) for prompt, answer in split]
    mask = torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for _, a in split])
    attention = torch.cat([torch.ones(len(rows), 4, dtype=torch.long), mask], 1)
    answers = Answers(torch.tensor(rows), attention, mask, mask[:, 0] > 0)
    actor = ActorCritic(policy(base), reward_from=finished.path, copy_reference=False)
    assert actor.rewards(answers, pad).tolist() == pytest.approx(expected, abs=1e-4)
