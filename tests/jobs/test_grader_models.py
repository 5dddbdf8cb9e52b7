"""Graders that ask a model in a job: checked when it is posted, kept, and fetched for the child."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.graders import asking
from engine.plan import GraderModel, Report
from jobs.admission import admit
from jobs.errors import InUse, NotFound, SpecInvalid
from jobs.inputs import inputs_of, with_inputs
from jobs.model import Adapter, JobSpec, Status
from tests.adapter_rows import add_adapter
from tests.jobs.test_runner import Script, Scripted, finish, runner_of
from tests.workers import House

UNKNOWN = "ad_" + "0" * 24
ANSWERED = [
    {"role": "user", "content": "{{ item.question }}"},
    {"role": "assistant", "content": "{{ sample.output_text }}"},
]
RUBRIC = [{"role": "user", "content": "Rate: {{ sample.output_text }}"}]
LENGTH = {"type": "length", "maximum": 9}
LABELS = {"type": "label_model", "labels": ["a", "b"], "passing_labels": ["a"]}


def weighed(model: str, **changed: Any) -> dict[str, Any]:
    return {"type": "score_model", "model": model, "input": ANSWERED} | changed


def judged(model: str, **changed: Any) -> dict[str, Any]:
    return {"type": "score_model", "model": model, "input": RUBRIC} | changed


def multi(**graders: Any) -> dict[str, Any]:
    return {"type": "multi", "graders": graders, "calculate_output": " + ".join(graders)}


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house(inference_url="http://127.0.0.1:9")


def adapter(house: House, **changes: Any) -> Adapter:
    revision = house.bases.find("tiny").revision
    return add_adapter(
        house.store, house.objects, house.tenant_id, **({"base_revision": revision} | changes)
    )


def spec_of(house: House, grader: dict[str, Any], **changed: Any) -> dict[str, Any]:
    rows = [{"prompt": f"say {n}", "item": {"question": f"say {n}"}} for n in range(4)]
    method = {"type": "grpo", "grader": grader, "max_length": 64}
    dataset = house.add_dataset(rows, "prompt")
    return {"base_model": "tiny", "dataset": dataset, "method": method} | changed


def admitted(house: House, grader: dict[str, Any], served: set[str] | None = None) -> JobSpec:
    spec = JobSpec.model_validate(spec_of(house, grader))
    found = admit(house.store, house.bases, house.tenant_id, spec, max_lora_rank=64, served=served)
    return found.spec


def problems(
    house: House, grader: dict[str, Any], served: set[str] | None = None
) -> list[tuple[str, str]]:
    with pytest.raises(SpecInvalid) as refusal:
        admitted(house, grader, served)
    return [(problem.param, problem.code) for problem in refusal.value.problems]


def test_reward_adapters_and_judges_are_taken_wherever_they_stand(house: House) -> None:
    reward, policy = adapter(house, kind="reward"), adapter(house)
    inner = multi(a=judged(policy.id), b=LABELS | {"model": "tiny", "input": RUBRIC})
    spec = admitted(house, multi(kind=weighed(reward.id), inner=inner, long=LENGTH), {"tiny"})
    assert inputs_of(spec) == {
        "method.grader.graders.kind.model": reward.id,
        "method.grader.graders.inner.graders.a.model": policy.id,
    }
    assert inputs_of(admitted(house, judged("tiny"))) == {}


def test_a_reward_adapter_that_cannot_score_here_is_refused_at_its_field(house: House) -> None:
    reward = adapter(house, kind="reward")
    other = adapter(house, kind="reward", base_model="other")
    whole = adapter(house, kind="reward", peft={"type": "full"})
    field = "method.grader.model"
    assert problems(house, weighed(other.id)) == [(field, "wrong_base_model")]
    assert problems(house, weighed(whole.id)) == [(field, "reward_model_unusable")]
    assert problems(house, judged(reward.id)) == [("method.grader.input", "reward_input_invalid")]
    labels = LABELS | {"model": reward.id, "input": ANSWERED}
    assert problems(house, labels) == [(field, "wrong_adapter_kind")]
    parts = multi(a=weighed(other.id), b=judged(reward.id))
    assert problems(house, parts) == [
        ("method.grader.graders.a.model", "wrong_base_model"),
        ("method.grader.graders.b.input", "reward_input_invalid"),
    ]


def test_a_judge_that_nobody_could_ask_is_refused_at_its_field(house: House) -> None:
    field = "method.grader.model"
    old = adapter(house, base_revision="old")
    assert problems(house, judged("gpt-9")) == [(field, "model_unknown")]
    assert problems(house, judged(old.id)) == [(field, "base_model_changed")]
    assert problems(house, judged("tiny"), {"other"}) == [(field, "judge_not_served")]
    assert problems(house, judged(adapter(house).id), set()) == [(field, "judge_not_served")]
    other = adapter(house, base_model="other")
    assert problems(house, judged(other.id)) == [(field, "base_model_not_allowed")]
    warm = {"temperature": 0.5, "seed": 1}
    assert problems(house, judged("tiny", sampling_params=warm)) == [
        ("method.grader.sampling_params.temperature", "judge_not_greedy")
    ]


@pytest.mark.parametrize("model", [UNKNOWN, "ad_x", "ad_\x00", "@rm"])
def test_an_unknown_adapter_is_not_found(house: House, model: str) -> None:
    with pytest.raises(NotFound):
        admitted(house, multi(a=weighed(model), b=LENGTH))


def test_adapters_come_into_the_places_that_name_stages(house: House) -> None:
    grader = multi(kind=weighed("@rm"), judge=judged("@sft"), tiny=judged("tiny"))
    spec = JobSpec.model_validate(spec_of(house, grader))
    made = with_inputs(spec, dict.fromkeys(inputs_of(spec), "ad_1"))
    models = [part.model for _, part in asking(getattr(made.method, "grader", None))]
    assert models == ["ad_1", "ad_1", "tiny"]


def submit(house: House, grader: dict[str, Any]) -> str:
    spec = admitted(house, grader)
    revision = house.bases.find("tiny").revision
    return house.store.jobs.submit(house.tenant_id, spec, base_revision=revision).job.id


def test_the_child_finds_reward_adapters_in_folders_and_judges_by_their_contract(
    house: House,
) -> None:
    reward, policy = adapter(house, kind="reward"), adapter(house)
    grader = multi(
        a=weighed(reward.id), b=judged(policy.id), c=judged("tiny"), d=weighed(reward.id)
    )
    job_id = submit(house, grader)
    seen: dict[str, GraderModel] = {}
    files: list[bytes] = []

    def look(script: Script) -> Report | None:
        seen.update(script.plan.grader_models)
        folder = seen[reward.id].folder
        assert folder is not None
        files.append((folder / "adapter_model.safetensors").read_bytes())
        assert "127.0.0.1" not in repr(script.plan)
        return None

    runner, _ = runner_of(house, Scripted([look, finish]))
    runner.run_next("default")

    assert house.job(job_id).status is Status.SUCCEEDED
    base = house.bases.find("tiny").path
    assert seen[policy.id] == GraderModel(base_path=base, contract=policy.manifest["contract"])
    assert seen["tiny"] == GraderModel(base_path=base)
    assert seen[reward.id].contract == reward.manifest["contract"]
    assert files[0]


def test_an_adapter_in_a_grader_is_kept_while_its_job_may_need_it(house: House) -> None:
    reward, policy = adapter(house, kind="reward"), adapter(house)
    names = {"a" * 64: weighed(reward.id), "b": judged(policy.id)}
    job_id = submit(house, multi(x=multi(**{"y" * 64: multi(**names)})))
    for kept in (reward, policy):
        with pytest.raises(InUse):
            house.store.adapters.delete(house.tenant_id, kept.id)
    house.store.jobs.cancel(house.tenant_id, job_id)
    house.store.adapters.delete(house.tenant_id, reward.id)


def test_a_stages_reward_adapter_weighs_in_the_grader_of_another(house: House) -> None:
    pairs = [{"prompt": f"say {n}", "chosen": f"{n} it is", "rejected": "no"} for n in range(4)]
    stages = {
        "rm": {"dataset": house.add_dataset(pairs, "preference"), "method": {"type": "reward"}},
        "grpo": spec_of(house, multi(kind=weighed("@rm"), long=LENGTH)),
        "again": spec_of(house, multi(judge=judged("@grpo"), long=LENGTH)),
    }
    made = house.start_pipeline(stages)
    assert {stage.name: stage.needs for stage in made.stages} == {
        "rm": (),
        "grpo": ("rm",),
        "again": ("grpo",),
    }
    wrong = {
        "sft": {"dataset": stages["rm"]["dataset"], "method": {"type": "dpo"}},
        "grpo": spec_of(house, multi(kind=weighed("@nobody"), long=judged("@grpo"))),
    }
    with pytest.raises(SpecInvalid) as refusal:
        house.start_pipeline(wrong)
    assert [(problem.param, problem.code) for problem in refusal.value.problems] == [
        ("stages.grpo.method.grader.graders.kind.model", "unknown_stage"),
        ("stages.grpo.method.grader.graders.long.model", "self_reference"),
    ]
