"""What the server answers equals transformers and peft, run one request at a time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from engine.infer.probes import compute_logprobs
from tests.engine.infer.world import (
    ARCHITECTURES,
    BASE_NAME,
    SENTENCES,
    World,
    complete,
    greedy,
    load,
    serve,
    write_base,
)

TOKENS = 16


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_concurrent_requests_for_base_and_adapters_get_the_tokens_of_generate(
    architecture: str, tmp_path: Path
) -> None:
    world = World(tmp_path, write_base(tmp_path / "base", architecture), architecture)
    folders = {
        BASE_NAME: None,
        "ad_four": world.add_lora("ad_four", r=4, seed=1),
        "ad_eight": world.add_lora("ad_eight", r=8, lora_alpha=3, seed=2),
        "ad_dora": world.add_lora("ad_dora", r=8, use_dora=True, lora_alpha=3, seed=4),
        "ad_prompt": world.add_virtual_tokens("ad_prompt", "prompt_tuning", count=5),
        "ad_prefix": world.add_virtual_tokens("ad_prefix", "prefix_tuning", count=20, seed=2),
        "ad_sixteen": world.add_lora("ad_sixteen", r=16, use_rslora=True, lora_alpha=5, seed=3),
    }
    prompts = [world.ids(text) for text in SENTENCES[:3]]
    asked = [(name, prompt) for prompt in prompts for name in folders]

    # A prefill in pieces, so that the cache is filled and continued in every way.
    with serve(world, max_running=7, prefill_chunk=9) as client:

        def ask(request: tuple[str, list[int]]) -> list[int]:
            name, prompt = request
            answer = complete(
                client,
                model=name,
                prompt=prompt,
                max_tokens=TOKENS,
                temperature=0,
                return_token_ids=True,
            )
            ids: list[int] = answer["choices"][0]["token_ids"]
            return ids

        with ThreadPoolExecutor(len(asked)) as threads:
            answers = list(threads.map(ask, asked))

    models = {name: load(world.base, folder) for name, folder in folders.items()}
    expected = [greedy(models[name], prompt, TOKENS) for name, prompt in asked]
    assert answers == expected
    said: dict[str, list[list[int]]] = {name: [] for name in folders}
    for (name, _), answer in zip(asked, answers, strict=True):
        said[name].append(answer)
    assert len({str(each) for each in said.values()}) == len(folders), "each says its own"


LORAS = ("ad_rank4", "ad_rslora", "ad_part", "ad_dora")


@pytest.mark.parametrize("name", [BASE_NAME, *LORAS, "ad_prompt", "ad_prefix", "ad_full"])
def test_logprobs_of_prompt_and_answer_equal_those_of_the_trained_model(
    name: str, client: httpx.Client, world: World
) -> None:
    prompt = world.ids(SENTENCES[0])
    answer = complete(
        client, model=name, prompt=prompt, max_tokens=8, temperature=0.7, seed=3, echo=True,
        logprobs=2, ignore_eos=True, return_token_ids=True,
    )  # fmt: skip
    choice = answer["choices"][0]
    if name == "ad_full":
        model = load(world.root / name)
    else:
        model = load(world.base, None if name == BASE_NAME else world.root / name)
    ids = prompt + choice["token_ids"]
    expected = compute_logprobs(model, ids, 1)
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    assert len(choice["logprobs"]["tokens"]) == len(ids)
