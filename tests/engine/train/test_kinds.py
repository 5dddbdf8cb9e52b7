"""Every kind of PEFT, from training to serving: it learns, is served as trained, loads in peft."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.infer.probes import compute_logprobs
from engine.plan import Finished
from engine.spec import LoraPeft, Peft, PrefixTuningPeft, PromptTuningPeft, QloraPeft, SftMethod
from tests.bases import make_base
from tests.engine.infer.world import BASE_NAME, World, complete, load, serve
from tests.engine.train.runs import Reports, train
from tests.workers import REPO

STEPS = 40
TINY = REPO / "examples" / "models" / "luthier-tiny"  # virtual tokens need a base with skills
LOW_RANK: dict[str, Peft] = {
    "lora": LoraPeft(r=4),
    "lora-gaussian": LoraPeft(r=4, init_lora_weights="gaussian"),
    "lora-orthogonal": LoraPeft(r=4, init_lora_weights="orthogonal"),
    "qlora": QloraPeft(r=4),
    "qlora-dora": QloraPeft(r=4, use_dora=True),
    "dora": LoraPeft(r=4, use_dora=True),
    "dora-rslora": LoraPeft(r=4, use_dora=True, use_rslora=True),
}
VIRTUAL: dict[str, Peft] = {
    "prompt": PromptTuningPeft(num_virtual_tokens=8),
    "prompt-text": PromptTuningPeft(
        num_virtual_tokens=8, prompt_tuning_init="text", prompt_tuning_init_text="say the number"
    ),
    "prompt-random": PromptTuningPeft(num_virtual_tokens=8, prompt_tuning_init="random"),
    "prefix": PrefixTuningPeft(num_virtual_tokens=8),
    "prefix-projected": PrefixTuningPeft(
        num_virtual_tokens=8, prefix_projection=True, encoder_hidden_size=128
    ),
}


@pytest.fixture(scope="module")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def learn(base: Path, work_dir: Path, peft: Peft) -> tuple[Finished, Reports]:
    projected = getattr(peft, "prefix_projection", False)
    virtual = isinstance(peft, PromptTuningPeft | PrefixTuningPeft)
    rate = 0.2 if virtual and not projected else 5e-3
    method = SftMethod(
        max_steps=STEPS, per_device_batch_size=4, learning_rate=rate, warmup_ratio=0, max_length=128
    )
    return train(base, work_dir, method, peft)


def continued(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest next token, and so on, by the forward that training uses: without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def publish(finished: Finished, root: Path) -> Path:
    """The folder that the server is handed."""
    folder = finished.path.rename(root / "ad_tuned")
    manifest = finished.model_dump(mode="json", include={"kind", "probes", "contract"})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", [*LOW_RANK, *VIRTUAL])
def test_a_kind_learns_and_is_served_as_peft_runs_it(
    random_base: Path, tmp_path: Path, name: str
) -> None:
    if "qlora" in name:
        pytest.importorskip("bitsandbytes")
    base = TINY if name in VIRTUAL else random_base
    finished, reports = learn(base, tmp_path / "run", (LOW_RANK | VIRTUAL)[name])
    losses = [reports.metrics[step]["loss"] for step in sorted(reports.metrics)]
    assert losses[-1] < losses[0] - 1.0, "it learns"
    gained = [
        after - before
        for probe in finished.probes
        for after, before in zip(probe.logprobs, probe.base_logprobs, strict=True)
    ]
    assert sum(gained) / len(gained) > 1.0, "and what was learnt is in the adapter"
    plain = load(base)
    for probe in finished.probes:
        expected = compute_logprobs(plain, probe.token_ids, probe.prompt_tokens)
        assert probe.base_logprobs == pytest.approx(expected, abs=1e-5)

    folder = publish(finished, tmp_path)
    reference = load(base, folder)
    for probe in finished.probes:
        expected = compute_logprobs(reference, probe.token_ids, probe.prompt_tokens)
        assert probe.logprobs == pytest.approx(expected, abs=1e-4)
    prompt = list(finished.probes[0].token_ids[: finished.probes[0].prompt_tokens])
    with serve(World(tmp_path, base), prefill_chunk=5) as client:
        body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        answers = [
            complete(client, model=name, return_token_ids=True, **body)
            for name in ("ad_tuned", BASE_NAME)
        ]
    tuned, untuned = (answer["choices"][0]["token_ids"] for answer in answers)
    assert tuned == continued(reference, prompt, 12)
    assert tuned != untuned
    assert answers[0]["usage"] == answers[1]["usage"], "virtual tokens are not the client's"


@pytest.mark.parametrize("name", ["lora", "dora", "qlora", "prompt"])
def test_gradient_checkpointing_changes_no_loss(
    random_base: Path, tmp_path: Path, name: str
) -> None:
    if "qlora" in name:
        pytest.importorskip("bitsandbytes")
    peft = (LOW_RANK | VIRTUAL)[name]
    runs = []
    for checkpointing in (False, True):
        method = SftMethod(
            max_steps=3, learning_rate=1e-2, warmup_ratio=0, gradient_checkpointing=checkpointing
        )
        _, reports = train(random_base, tmp_path / str(checkpointing), method, peft)
        runs.append([reports.metrics[step]["loss"] for step in (1, 2, 3)])
    assert runs[1] == pytest.approx(runs[0], abs=1e-4)
    assert runs[0][2] < runs[0][0]
