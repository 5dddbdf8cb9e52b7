"""Graders that ask a model, as rewards: reward adapters on the job's base, judges over HTTP."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.examples import Asked
from engine.plan import GraderModel
from engine.render import load_renderer
from engine.rows import Message, Prompt
from engine.spec import GrpoMethod, LoraPeft, RewardMethod
from engine.train.judges import judging
from engine.train.scorer import Grading, reading
from engine.train.switch import AdapterSwitch
from tests.engine.graders.making import RUBRIC
from tests.engine.infer.rewards import expected_score
from tests.engine.train.runs import Reports, train
from tests.workers import REPO

TINY = REPO / "examples" / "models" / "luthier-tiny"
REWARD_ID = "ad_" + "0" * 24
ANSWERED = [
    {"role": "user", "content": "{{ item.question }}"},
    {"role": "assistant", "content": "{{ sample.output_text }}"},
]
KIND: dict[str, Any] = {"type": "score_model", "model": REWARD_ID, "input": ANSWERED}
SHORT: dict[str, Any] = {"type": "length", "unit": "words", "minimum": 1, "maximum": 12}
BOTH: dict[str, Any] = {
    "type": "multi",
    "graders": {"kind": KIND, "short": SHORT},
    "calculate_output": "kind + 2 * short",
}


def example(name: str) -> list[dict[str, Any]]:
    lines = (REPO / "examples" / "data" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that prefers kind answers."""
    method = RewardMethod(max_steps=15, learning_rate=2e-3, max_length=64)
    work_dir = tmp_path_factory.mktemp("reward") / "run"
    rows = example("preference")[:200]
    return train(TINY, work_dir, method, LoraPeft(r=4), rows=rows, checkpoint_every=99)[0].path


def models(reward_model: Path) -> dict[str, GraderModel]:
    return {REWARD_ID: GraderModel(base_path=TINY, folder=reward_model)}


def asked(prompt: str, /, **item: Any) -> Asked:
    row = Prompt(prompt=(Message(role="user", content=prompt),), item_json=json.dumps(item))
    return Asked(row, [1, 2, 3])


def test_a_reward_adapter_in_a_grader_gives_what_its_own_model_gives(
    reward_model: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    renderer = load_renderer(TINY)
    causal = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    switch = AdapterSwitch(get_peft_model(causal, LoraConfig(r=2, task_type="CAUSAL_LM")))
    method = GrpoMethod(grader=BOTH, per_device_batch_size=8)
    assert method.grader is not None
    link: Any = Reports(tmp_path, "continue")
    plan: Any = Plan(models(reward_model))
    judge = judging(plan, method.grader, lambda f, name: reading(switch, f, name), link)
    score = Grading(method.grader, judge, renderer, link)
    texts = [
        "A frog lives in the pond. I am glad to help.",
        "Do not ask me again.",
        " ".join(["pond"] * 20),
    ]
    questions = [asked("Say it.", question=f"Where is frog {n}?") for n in range(3)]

    found = score(questions, [renderer.tokenizer.encode(text).ids for text in texts])

    headed = AutoModelForSequenceClassification.from_pretrained(
        TINY, num_labels=1, dtype=torch.float32
    )
    headed.config.pad_token_id = renderer.contract.pad_token_id
    reference = PeftModel.from_pretrained(headed, str(reward_model)).eval()
    for number, text in enumerate(texts):
        turns = (
            Message(role="user", content=f"Where is frog {number}?"),
            Message(role="assistant", content=text),
        )
        rendered = renderer.conversation(turns)
        kind = expected_score(reference, list(rendered.token_ids[: rendered.end]))
        assert found[number] == pytest.approx(kind + 2 * (number < 2), abs=1e-4)
    assert found[0] - 2 > 0 > found[1] - 2, "it learned what is kind"
    assert link.warnings == []


def test_what_is_too_long_for_the_reward_models_context_is_not_scored(tmp_path: Path) -> None:
    """As `POST /graders/run` refuses it: a base's positions end with its context."""
    method = GrpoMethod(grader=KIND | {"range": [-5, 5]}, per_device_batch_size=8)
    assert method.grader is not None
    link: Any = Reports(tmp_path, "continue")
    renderer = load_renderer(TINY)
    read: list[int] = []

    def reader(inputs: Sequence[Sequence[int]]) -> list[float]:
        read.extend(map(len, inputs))
        return [1.0] * len(inputs)

    plan: Any = Plan(models(tmp_path))
    judge = judging(plan, method.grader, lambda folder, name: reader, link)
    score = Grading(method.grader, judge, renderer, link)
    answer = renderer.tokenizer.encode("in the pond").ids

    rewards = score(
        [asked("a", question="frog?"), asked("b", question="frog " * 600)], [answer] * 2
    )

    assert rewards == [1.0, -5.0], "the lowest of the range"
    assert len(read) == 1
    (warning,) = link.warnings
    assert "holds 512; shorten `input`." in warning


class Plan:
    """As much of a plan as judging reads."""

    def __init__(self, grader_models: dict[str, GraderModel], generator_url: str = "") -> None:
        self.grader_models, self.generator_url = grader_models, generator_url
        self.generator_key, self.judge_patience_s = "", 1.0


def test_a_policy_learns_from_a_reward_adapter_and_a_grader_together(
    reward_model: Path, both_manners: Path, tmp_path: Path
) -> None:
    rows = [row | {"item": {"question": row["prompt"]}} for row in example("prompts")[:60]]
    method = GrpoMethod(
        grader=BOTH,
        num_generations=4,
        per_device_batch_size=16,
        max_length=48,
        max_completion_length=24,
        learning_rate=1e-3,
        warmup_ratio=0.0,
        max_steps=10,
        validation_split=0.3,
    )
    _, reports = train(
        TINY,
        tmp_path / "run",
        method,
        LoraPeft(r=8),
        rows=rows,
        init_from=both_manners,
        grader_models=models(reward_model),
        checkpoint_every=99,
    )
    rewards = [metrics["eval_reward"] for _, metrics in reports.evaluations]
    assert rewards[-1] > rewards[0] + 0.25, rewards
    assert reports.warnings == []


def test_a_judges_bad_answer_and_a_question_that_is_refused_are_faults(tmp_path: Path) -> None:
    from tests.api.inference import Inference
    from tests.api.serving import serve

    inference = Inference()  # says "one two three", in which there is no number
    method = GrpoMethod(
        grader={"type": "score_model", "model": "tiny", "input": RUBRIC, "range": [1, 5]}
    )
    assert method.grader is not None
    link: Any = Reports(tmp_path, "continue")
    renderer = load_renderer(TINY)
    with serve(inference.app) as port:
        plan: Any = Plan({"tiny": GraderModel(base_path=TINY)}, f"http://127.0.0.1:{port}")
        judge = judging(plan, method.grader, lambda folder, name: pytest.fail("no reward"), link)
        score = Grading(method.grader, judge, renderer, link)
        same = renderer.tokenizer.encode("the same").ids
        rewards = score([asked("a"), asked("b"), asked("c")], [same, same, [5]])
    assert rewards == [1.0, 1.0, 1.0], "the lowest of the range"
    assert len(inference.asked) == 2, "what is the same is asked once"
    (warning,) = link.warnings
    assert "has no numbers" in warning
    asked_first = inference.asked[0]
    assert (asked_first["model"], asked_first["temperature"]) == ("tiny", 0.0)
    text = renderer.tokenizer.decode(asked_first["prompt"], skip_special_tokens=False)
    assert "Answer with one number from 1 to 5 and nothing else." in text
