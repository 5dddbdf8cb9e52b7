"""One batch for many adapters: what it gives is what each request gives alone."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.infer.batching import kv_tokens, shapes_for_rows
from engine.infer.errors import ModelUnusable
from engine.infer.model import load_model
from engine.infer.probes import compute_logprobs
from tests.engine.infer.world import (
    ARCHITECTURES,
    BASE_NAME,
    SENTENCES,
    UNLIKE,
    World,
    complete,
    engine_of,
    error_of,
    greedy,
    load,
    metric,
    serve,
    until,
    write_base,
)

TOKENS = 12


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base with 32 adapters of every kind that a batch takes, ranks 1 to 64."""
    root = tmp_path_factory.mktemp("adapters")
    world = World(root, write_base(tmp_path_factory.mktemp("base")))
    ranks = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    for number in range(26):
        world.add_lora(
            f"ad_{number}",
            seed=number,
            r=ranks[number % len(ranks)],
            lora_alpha=4 + number,
            use_rslora=number % 3 == 1,
            use_dora=number % 5 == 2,
            target_modules=["q_proj", "v_proj"] if number % 4 == 3 else "all-linear",
            probes=False,
        )
    for number in range(26, 29):
        world.add_virtual_tokens(f"ad_{number}", "prompt_tuning", count=number - 20, seed=number)
    for number in range(29, 32):
        world.add_virtual_tokens(f"ad_{number}", "prefix_tuning", count=number - 25, seed=number)
    return world


def asked_of(world: World) -> list[tuple[str, list[int], int]]:
    """Requests of unlike lengths for all the adapters and the base, each adapter twice."""
    found = []
    for number in range(66):
        name = BASE_NAME if number % 33 == 32 else f"ad_{number % 33}"
        prompt = world.ids(SENTENCES[number % 5] * (1 + number % 3))[: 5 + (7 * number) % 60]
        found.append((name, prompt, 4 + (5 * number) % 20))
    return found


def expected_of(world: World, asked: list[tuple[str, list[int], int]]) -> list[list[int]]:
    """Each of them by transformers and peft, one at a time."""
    models = {
        name: load(world.base, None if name == BASE_NAME else world.root / name)
        for name in {name for name, _, _ in asked}
    }
    return [greedy(models[name], prompt, tokens) for name, prompt, tokens in asked]


def answers_of(
    client: httpx.Client, asked: list[tuple[str, list[int], int]], **body: Any
) -> list[dict[str, Any]]:
    """The choices of requests that all run at once."""

    def ask(request: tuple[str, list[int], int]) -> dict[str, Any]:
        name, prompt, tokens = request
        given = {"temperature": 0, "return_token_ids": True, **body}
        answer = complete(client, model=name, prompt=prompt, max_tokens=tokens, **given)
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    with ThreadPoolExecutor(len(asked)) as threads:
        return list(threads.map(ask, asked))


@pytest.mark.parametrize(
    "options",
    [
        {"max_running": 64, "max_resident": 40},
        # Pieces, and a batch that is always full: everybody waits, joins and leaves.
        {"max_running": 5, "prefill_chunk": 7, "max_resident": 40},
        # Hardly more memory than one context takes: rows are turned out and begin anew.
        {"max_running": 16, "kv_bytes": 300 * 384, "max_resident": 40},
        # The LoRAs of two rows of rank 64, and not of three: the others wait.
        {"max_running": 16, "lora_bytes": 2 * 64 * 1536 * 4, "max_resident": 40},
        # Adapters come and go while others are in use.
        {"max_running": 8, "max_resident": 3},
    ],
    ids=["roomy", "pieces", "turned-out", "few-loras", "few-resident"],
)
def test_thirty_two_adapters_in_one_batch_say_what_each_says_alone(
    many: World, options: dict[str, Any]
) -> None:
    asked = asked_of(many)
    with serve(many, **options) as client:
        answers = answers_of(client, asked)
        assert engine_of(client).base.model.rows is not None
        turned_out = metric(client, "luthier_inference_sequences_turned_out_total")
        assert (turned_out > 0) == ("kv_bytes" in options)
        rows = metric(client, "luthier_inference_batch_rows_sum")
        assert rows > 2 * metric(client, "luthier_inference_batch_rows_count")
    assert [answer["token_ids"] for answer in answers] == expected_of(many, asked)


def test_logprobs_in_a_batch_are_those_of_each_alone(many: World) -> None:
    asked = asked_of(many)[::2]
    with serve(many, max_running=64, max_resident=40) as client:
        answers = answers_of(
            client, asked, temperature=0.8, seed=3, echo=True, logprobs=1, ignore_eos=True
        )
    for (name, prompt, tokens), answer in zip(asked, answers, strict=True):
        model = load(many.base, None if name == BASE_NAME else many.root / name)
        ids = prompt + answer["token_ids"]
        assert len(answer["token_ids"]) == tokens
        found = answer["logprobs"]["token_logprobs"][1:]
        assert found == pytest.approx(compute_logprobs(model, ids, 1), abs=1e-4)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *UNLIKE])
def test_architectures_share_forwards_or_say_that_they_do_not(
    architecture: str, tmp_path: Path
) -> None:
    base = write_base(tmp_path, architecture)
    model = load_model("base", base, torch.device("cpu"))
    assert (shapes_for_rows(model) is None) == (architecture in UNLIKE)


@pytest.mark.parametrize("architecture", UNLIKE)
def test_a_model_that_cannot_share_still_answers(architecture: str, tmp_path: Path) -> None:
    world = World(tmp_path, write_base(tmp_path / "base", architecture), architecture)
    world.add_lora("ad_1", seed=1, target_modules="all-linear")
    asked = [(n, world.ids(t), TOKENS) for n in (BASE_NAME, "ad_1") for t in SENTENCES[:2]]
    with serve(world) as client:
        answers = answers_of(client, asked)
    assert [answer["token_ids"] for answer in answers] == expected_of(world, asked)


def test_an_adapter_of_the_output_head_runs_beside_the_batch(own_world: World) -> None:
    own_world.add_lora("ad_head", seed=3, target_modules=["q_proj", "lm_head"])
    own_world.add_lora("ad_1", seed=1)
    names = ("ad_head", "ad_1", BASE_NAME)
    asked = [(name, own_world.ids(text), TOKENS) for name in names for text in SENTENCES[:3]]
    with serve(own_world) as client:
        answers = answers_of(client, asked)
    assert [answer["token_ids"] for answer in answers] == expected_of(own_world, asked)


def test_an_adapter_that_diverged_spoils_nobody(own_world: World) -> None:
    folder = own_world.add_lora("ad_1", seed=1)
    own_world.add_lora("ad_broken", seed=2, probes=False)
    path = own_world.root / "ad_broken" / "adapter_model.safetensors"
    weights = {name: tensor * 1e18 for name, tensor in load_file(path).items()}
    save_file(weights, path)  # finite, and what comes of it is not
    asked = [("ad_1", own_world.ids(text), 40) for text in SENTENCES]
    with serve(own_world, max_running=6) as client, ThreadPoolExecutor(1) as threads:
        running = threads.submit(answers_of, client, asked)
        for _ in range(6):
            refused = client.post("/v1/completions", json={"model": "ad_broken", "prompt": "The"})
            assert refused.status_code >= 400
        answers = running.result()
        later = answers_of(client, asked)
    expected = expected_of(own_world, asked)
    assert [answer["token_ids"] for answer in answers] == expected
    assert [answer["token_ids"] for answer in later] == expected
    assert folder.is_dir()


def test_memory_below_one_context_is_refused_at_the_start(many: World) -> None:
    model = load_model("base", many.base, torch.device("cpu"))
    model.rows = shapes_for_rows(model)
    with pytest.raises(ModelUnusable, match="bytes hold the attention state of"):
        kv_tokens(model, 1000)


@pytest.fixture(scope="module")
def served(many: World) -> Iterator[httpx.Client]:
    with serve(many, max_running=4) as client:
        yield client


SYSTEM = " ".join(SENTENCES) * 2


def test_what_prompts_begin_with_is_fed_once(served: httpx.Client, many: World) -> None:
    begin = many.ids(SYSTEM)[:100]
    alone = load(many.base, many.root / "ad_3")

    def ask(end: str, **body: Any) -> tuple[list[int], float]:
        before = metric(served, "luthier_inference_prefix_tokens_total")
        body = {"model": "ad_3", "prompt": begin + many.ids(end), "user": "a", **body}
        answer = complete(served, temperature=0, max_tokens=8, return_token_ids=True, **body)
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids, metric(served, "luthier_inference_prefix_tokens_total") - before

    ends = ["one", "two and more", "three"]
    answers = [ask(end) for end in ends]
    assert [reused for _, reused in answers] == [0, 96, 96]
    expected = [greedy(alone, begin + many.ids(end), 8) for end in ends]
    assert [ids for ids, _ in answers] == expected
    # Neither another tenant nor another adapter finds it, and both are right.
    assert ask("one", user="b") == (expected[0], 0)
    other, reused = ask("one", model="ad_4")
    assert (other, reused) == (
        greedy(load(many.base, many.root / "ad_4"), begin + many.ids("one"), 8),
        0,
    )
    assert ask("one", model="ad_30")[1] == 0
    prefix = load(many.base, many.root / "ad_30")
    assert ask("two", model="ad_30") == (greedy(prefix, begin + many.ids("two"), 8), 96)
    # Log-probs of the prompt need it fed whole.
    assert ask("one", echo=True, logprobs=0)[1] == 0


def test_adapters_of_one_request_are_added_up(served: httpx.Client, many: World) -> None:
    parts = [("ad_0", 0.5), ("ad_3", 1.5), ("ad_4", -1.0)]
    model = load(many.base, many.root / "ad_0")
    for name, _ in parts[1:]:
        model.load_adapter(str(many.root / name), adapter_name=name)
    names = ["default", *(name for name, _ in parts[1:])]
    weights = [weight for _, weight in parts]
    model.add_weighted_adapter(names, weights, "sum", combination_type="cat")
    model.set_adapter("sum")
    prompt = many.ids(SENTENCES[0])
    body = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "echo": True, "logprobs": 0}
    body |= {"return_token_ids": True, "ignore_eos": True}
    adapters = [{"id": name, "weight": weight} for name, weight in parts]
    with ThreadPoolExecutor(6) as threads:  # among others
        noise = [threads.submit(complete, served, **{**body, "model": "ad_5"}) for _ in range(5)]
        choice = complete(served, **body, adapters=adapters)["choices"][0]
        assert all(each.result() for each in noise)
    ids = prompt + choice["token_ids"]
    found = choice["logprobs"]["token_logprobs"][1:]
    assert found == pytest.approx(compute_logprobs(model, ids, 1), abs=1e-4)
    alone = complete(served, **body, adapters=[{"id": "ad_0"}])["choices"][0]
    assert (
        alone["token_ids"]
        == complete(served, **{**body, "model": "ad_0"})["choices"][0]["token_ids"]
    )


@pytest.mark.parametrize(
    ("adapters", "code", "said"),
    [
        (["ad_0", "ad_2"], "adapters_not_additive", "is a DoRA"),
        (["ad_0", "ad_27"], "adapters_not_additive", "only LoRAs"),
        (["ad_0", "ad_none"], "model_not_found", "does not exist"),
        ([], "invalid_value", "at least 1"),
        (["ad_0"] * 9, "invalid_value", "at most 8"),
    ],
)
def test_adapters_that_cannot_be_added_up_are_refused(
    served: httpx.Client, adapters: list[str], code: str, said: str
) -> None:
    body = {"model": BASE_NAME, "prompt": "x", "adapters": [{"id": name} for name in adapters]}
    error = error_of(served.post("/v1/completions", json=body))
    assert error["code"] == code
    assert said in error["message"]


def test_more_adapters_than_are_kept_are_refused_and_fewer_wait_in_turn(many: World) -> None:
    def ask(names: list[str]) -> httpx.Response:
        body = {"model": BASE_NAME, "prompt": "x", "max_tokens": 2}
        return client.post("/v1/completions", json=body | {"adapters": [{"id": n} for n in names]})

    plain = [f"ad_{n}" for n in (0, 1, 3, 4, 5, 6)]
    with serve(many, max_resident=2) as client, ThreadPoolExecutor(12) as threads:
        assert error_of(ask(plain[:3]))["code"] == "too_many_adapters"
        pairs = [[a, b] for a in plain for b in plain if a < b]
        answers = list(threads.map(ask, pairs))
        assert [answer.status_code for answer in answers] == [200] * len(pairs)


def test_tenants_take_turns(many: World) -> None:
    body = {"prompt": "x", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    order: list[str] = []

    def ask(client: httpx.Client, user: str) -> None:
        complete(client, **body, user=user)
        order.append(user)

    with serve(many, max_running=1) as client, ThreadPoolExecutor(16) as threads:
        greedy_one = [threads.submit(ask, client, "many") for _ in range(12)]
        until(lambda: metric(client, "luthier_inference_sequences") >= 10)
        one = threads.submit(ask, client, "one")
        assert all(each.result() is None for each in [*greedy_one, one])
    assert order.index("one") <= 3


def test_a_resident_adapter_is_verified_once(many: World) -> None:
    with serve(many, max_resident=1) as client:
        for name in ("ad_30", "ad_31") * 3:
            complete(client, model=name, prompt="x", max_tokens=1)
        residency = engine_of(client).residency
        assert sorted(name for name, _ in residency._verified) == ["ad_30", "ad_31"]
        assert metric(client, "luthier_inference_adapter_evictions_total") == 5
        manifest = many.root / "ad_30" / "manifest.json"
        told = json.loads(manifest.read_bytes())
        kept = manifest.read_bytes()
        told["probes"][0]["logprobs"][0] += 1.0
        manifest.write_text(json.dumps(told))
        refused = client.post("/v1/completions", json={"model": "ad_30", "prompt": "x"})
        manifest.write_bytes(kept)
        assert error_of(refused)["code"] == "adapter_mismatch"
