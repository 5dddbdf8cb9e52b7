"""Every kind of PEFT, from training to serving: it learns, is served as trained, loads in peft."""

import json
from pathlib import Path

import pytest

from engine.infer.probes import compute_logprobs
from engine.plan import Finished
from engine.spec import LoraPeft, Peft, SftMethod
from tests.bases import make_base
from tests.engine.infer.world import BASE_NAME, World, complete, greedy, load, serve
from tests.engine.train.test_sft import Reports, train

STEPS = 40
# By name: the kind, and a learning rate that suits it.
KINDS: dict[str, tuple[Peft, float]] = {
    "lora": (LoraPeft(r=4), 5e-3),
    "lora-gaussian": (LoraPeft(r=4, init_lora_weights="gaussian"), 5e-3),
    "lora-orthogonal": (LoraPeft(r=4, init_lora_weights="orthogonal"), 5e-3),
    "dora": (LoraPeft(r=4, use_dora=True), 5e-3),
    "dora-rslora": (LoraPeft(r=4, use_dora=True, use_rslora=True), 5e-3),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def learn(base: Path, work_dir: Path, name: str) -> tuple[Finished, Reports]:
    peft, learning_rate = KINDS[name]
    method = SftMethod(
        max_steps=STEPS, per_device_batch_size=4, learning_rate=learning_rate, warmup_ratio=0
    )
    return train(base, work_dir, peft, method)


def publish(finished: Finished, root: Path) -> Path:
    """The folder that the server is handed."""
    folder = finished.path.rename(root / "ad_tuned")
    manifest = finished.model_dump(mode="json", include={"kind", "probes", "contract"})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_learns_and_is_served_as_peft_runs_it(base: Path, tmp_path: Path, name: str) -> None:
    finished, reports = learn(base, tmp_path / "run", name)
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
        body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
        tuned, untuned = (complete(client, model=n, **body) for n in ("ad_tuned", BASE_NAME))
    assert tuned["choices"][0]["token_ids"] == greedy(reference, prompt, 12)
    assert tuned["choices"][0]["token_ids"] != untuned["choices"][0]["token_ids"]
    assert tuned["usage"]["prompt_tokens"] == len(prompt)
