"""POST /v1/score gives what transformers and peft give, and refuses what it could not."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.infer.scoring import shared_tokens
from tests.engine.infer.rewards import (
    PAD,
    add_reward,
    add_whole_reward,
    expected_score,
    load_headed,
    load_reward,
)
from tests.engine.infer.world import (
    ARCHITECTURES,
    BASE_NAME,
    CONTEXT,
    SENTENCES,
    World,
    complete,
    engine_of,
    error_of,
    hang_up,
    metric,
    serve,
    until,
    write_base,
)


@pytest.fixture(scope="module")
def scored(base: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny Llama with a reward LoRA, a whole reward model and a LoRA that generates."""
    world = World(tmp_path_factory.mktemp("rewards"), base)
    add_reward(world, "ad_reward")
    add_whole_reward(world, "ad_whole", seed=5)
    world.add_lora("ad_lora")
    return world


@pytest.fixture(scope="module")
def client(scored: World) -> Iterator[httpx.Client]:
    with serve(scored, max_running=4, max_waiting=4) as client:
        yield client


def score(client: httpx.Client, model: str, *inputs: list[int]) -> list[float]:
    """Scores that must be given, in the order of the inputs."""
    answer = client.post("/v1/score", json={"model": model, "inputs": list(inputs)})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    tokens = sum(map(len, inputs))
    assert body["model"] == model
    assert body["usage"] == {
        "prompt_tokens": tokens,
        "completion_tokens": 0,
        "total_tokens": tokens,
    }
    assert [each["index"] for each in body["data"]] == list(range(len(inputs)))
    return [each["score"] for each in body["data"]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_those_of_transformers_and_peft(architecture: str, tmp_path: Path) -> None:
    world = World(tmp_path, write_base(tmp_path / "base", architecture), architecture)
    add_reward(world, "ad_lora", r=4, seed=1)
    add_reward(world, "ad_rslora", r=16, use_rslora=True, lora_alpha=5, seed=2)
    add_reward(world, "ad_dora", r=8, use_dora=True, lora_alpha=3, seed=3)
    add_whole_reward(world, "ad_whole", seed=4)
    inputs = [world.ids(text) for text in SENTENCES]
    assert max(map(len, inputs)) > 2 * 9, "the prefill is in several pieces"

    with serve(world, max_running=8, prefill_chunk=9) as client:
        for name in ("ad_lora", "ad_rslora", "ad_dora", "ad_whole"):
            model = load_reward(world, name)
            expected = [expected_score(model, ids) for ids in inputs]
            assert score(client, name, *inputs) == pytest.approx(expected, abs=1e-4)
            assert len({round(value, 3) for value in expected}) == len(inputs)
            # Answers to one prompt, which is fed once; one of them begins another, one is it.
            answers = [inputs[0] + ids for ids in (inputs[1], inputs[1][:7], inputs[2], [])]
            expected = [expected_score(model, ids) for ids in answers]
            assert score(client, name, *answers) == pytest.approx(expected, abs=1e-4)


def test_a_reward_adapter_leaves_the_base_as_it_was(client: httpx.Client, scored: World) -> None:
    body: dict[str, Any] = {"prompt": SENTENCES[0], "max_tokens": 8, "temperature": 0}
    before = complete(client, **body)["choices"]
    first = score(client, "ad_reward", scored.ids(SENTENCES[0]))
    assert complete(client, **body)["choices"] == before
    assert score(client, "ad_reward", scored.ids(SENTENCES[0])) == first


def test_the_score_is_read_where_training_read_it_behind_pad_tokens(
    client: httpx.Client, scored: World
) -> None:
    ids = scored.ids(SENTENCES[1])
    model = load_reward(scored, "ad_reward")
    plain, ended = score(client, "ad_reward", ids, [*ids, PAD, PAD])
    assert plain == ended == pytest.approx(expected_score(model, [*ids, PAD, PAD]), abs=1e-4)
    only = score(client, "ad_reward", [PAD, PAD])
    assert only == [pytest.approx(expected_score(model, [PAD, PAD]), abs=1e-4)]


def test_a_model_that_generates_does_not_score_and_the_other_way_round(
    client: httpx.Client,
) -> None:
    for name in (BASE_NAME, "ad_lora"):
        answer = client.post("/v1/score", json={"model": name, "inputs": [[5]]})
        assert answer.status_code == 422
        error = error_of(answer)
        assert (error["code"], error["param"]) == ("adapter_cannot_score", "model")
    for name in ("ad_reward", "ad_whole"):
        answer = client.post("/v1/completions", json={"model": name, "prompt": "x"})
        assert answer.status_code == 422
        error = error_of(answer)
        assert (error["code"], error["param"]) == ("adapter_cannot_generate", "model")
        assert "/v1/score" in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ("{", 400, "malformed_json", None),
        ({"inputs": [[1]]}, 422, "invalid_value", "model"),
        ({"model": "ad_reward"}, 422, "invalid_value", "inputs"),
        ({"model": "ad_reward", "inputs": []}, 422, "invalid_value", "inputs"),
        ({"model": "ad_reward", "inputs": [[]]}, 422, "invalid_value", "inputs"),
        ({"model": "ad_reward", "inputs": ["text"]}, 422, "invalid_value", "inputs"),
        ({"model": "ad_reward", "inputs": [[1.5]]}, 422, "invalid_value", "inputs"),
        ({"model": "ad_reward", "inputs": [[1]], "n": 2}, 422, "unknown_field", "n"),
        ({"model": "ad_nobody", "inputs": [[1]]}, 404, "model_not_found", "model"),
        ({"model": "ad_reward", "inputs": [[1], [512]]}, 400, "invalid_token_id", "inputs.1"),
        (
            {"model": "ad_reward", "inputs": [[1] * (CONTEXT + 1)]},
            400,
            "context_length_exceeded",
            "inputs.0",
        ),
        ({"model": "ad_reward", "inputs": [[1]] * 257}, 422, "invalid_value", "inputs"),
    ],
)
def test_what_cannot_be_scored_is_refused_at_its_field(
    client: httpx.Client, body: Any, status: int, code: str, param: str | None
) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    answer = client.post("/v1/score", content=content)
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


def test_requests_above_the_bound_are_told_to_come_back(
    client: httpx.Client, scored: World
) -> None:
    score(client, "ad_reward", [5])
    body = {"model": BASE_NAME, "prompt": [[5]] * 8, "max_tokens": CONTEXT, "ignore_eos": True}
    with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as busy:
        assert busy.status_code == 200
        answer = client.post("/v1/score", json={"model": "ad_reward", "inputs": [[5]]})
        assert error_of(answer)["code"] == "queue_full"
        assert answer.headers["retry-after"]
    until(lambda: metric(client, "luthier_inference_sequences") == 0)


def test_a_client_that_goes_away_stops_what_it_asked_for(scored: World) -> None:
    with serve(scored, max_running=2, prefill_chunk=1) as client:
        score(client, "ad_reward", [5])
        body = {"model": "ad_reward", "inputs": [[5] * CONTEXT] * 4}
        hang_up(client, "/v1/score", body, when=lambda: engine_of(client).scheduler.running > 0)
        until(lambda: engine_of(client).scheduler.running == 0)
        cancelled = 'luthier_inference_requests_total{outcome="cancelled"}'
        until(lambda: metric(client, cancelled) == 1)


def test_reward_models_are_put_out_and_brought_back_like_others(scored: World) -> None:
    ids = scored.ids(SENTENCES[0])
    with serve(scored, max_resident=1, max_full_models=1) as client:
        first = score(client, "ad_reward", ids)
        score(client, "ad_whole", ids)
        complete(client, model="ad_lora", prompt="x", max_tokens=1)
        assert sorted(engine_of(client).residency.resident()) == ["ad_lora", "ad_whole"]
        assert score(client, "ad_reward", ids) == first
        assert sorted(engine_of(client).residency.resident()) == ["ad_reward", "ad_whole"]


Spoil = Callable[[Path], object]


def change_manifest(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return spoil


def change_config(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))

    return spoil


def change_head(change: Callable[[torch.Tensor], torch.Tensor | None], *others: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        path = next(folder.glob("*.safetensors"))
        tensors = load_file(path)
        name = next(name for name in tensors if name.endswith("score.weight"))
        head = change(tensors.pop(name))
        save_file(tensors | ({} if head is None else {name: head}), path, {"format": "pt"})
        for each in others:
            each(folder)

    return spoil


NO_SCORES = change_manifest(lambda manifest: manifest.update(scores=[]))
NAN = change_head(lambda head: head * math.nan)
WRONG = {
    "a score of another model": (
        change_manifest(lambda manifest: manifest["scores"][1].update(score=1.5)),
        "adapter_mismatch",
        "in training it was 1.5000",
    ),
    "another head": (change_head(lambda head: head * 1.5), "adapter_mismatch", "probe 0 gets"),
    "a head without numbers": (NAN, "adapter_invalid", "not finite"),
    "no head": (change_head(lambda _: None), "adapter_invalid", "score"),
    "two scores": (change_head(lambda head: torch.cat([head, head])), "adapter_invalid", ""),
    "a narrow head": (change_head(lambda head: head[:, 1:].clone()), "adapter_invalid", ""),
    "all alike": (change_head(torch.zeros_like, NO_SCORES), "adapter_no_effect", "no answers"),
    "a probe too long": (
        change_manifest(lambda manifest: manifest["scores"][0].update(token_ids=[1] * 9999)),
        "adapter_invalid",
        "9999 tokens",
    ),
    "a probe of unknown tokens": (
        change_manifest(lambda manifest: manifest["scores"][0].update(token_ids=[512])),
        "adapter_invalid",
        "does not fit",
    ),
}
OF_LORA = {
    "more layers": (change_config(modules_to_save=["score", "lm_head"]), "adapter_invalid", "no m"),
    "no layer": (change_config(modules_to_save=None), "adapter_invalid", "`score`"),
    "a bias": (change_config(bias="all"), "adapter_invalid", "bias"),
}


def refusal(world: World, name: str) -> tuple[str, str]:
    with serve(world) as client:
        answer = client.post("/v1/score", json={"model": name, "inputs": [[5, 6]]})
        again = client.post("/v1/score", json={"model": name, "inputs": [[5, 6]]})
    assert answer.status_code == again.status_code == 422, answer.text
    return error_of(answer)["code"], error_of(answer)["message"]


@pytest.mark.parametrize("what", [*WRONG, *OF_LORA])
def test_a_lora_that_does_not_score_as_it_was_trained_is_refused(
    own_world: World, what: str
) -> None:
    spoil, code, text = (WRONG | OF_LORA)[what]
    spoil(add_reward(own_world, "ad_x"))
    found, message = refusal(own_world, "ad_x")
    assert found == code
    assert text in message


@pytest.mark.parametrize("what", WRONG)
def test_a_whole_model_that_does_not_score_as_it_was_trained_is_refused(
    own_world: World, what: str
) -> None:
    spoil, code, text = WRONG[what]
    spoil(add_whole_reward(own_world, "ad_x"))
    found, message = refusal(own_world, "ad_x")
    assert found == code
    assert text in message


def test_scores_that_overflow_are_no_scores(own_world: World) -> None:
    change_head(lambda head: head * 1e38, NO_SCORES)(add_reward(own_world, "ad_x"))
    code, message = refusal(own_world, "ad_x")
    assert code == "adapter_diverged"
    assert "learning rate" in message


def test_a_reward_model_without_scores_is_served_when_it_tells_texts_apart(
    own_world: World,
) -> None:
    add_reward(own_world, "ad_x", scores=False)
    model = load_reward(own_world, "ad_x")
    with serve(own_world) as client:
        found = score(client, "ad_x", [5, 6, 7])
    assert found == [pytest.approx(expected_score(model, [5, 6, 7]), abs=1e-4)]


def test_a_whole_reward_model_is_not_the_base(scored: World) -> None:
    ids = scored.ids(SENTENCES[0])
    model, base = load_reward(scored, "ad_whole"), load_headed(scored.base)
    base.score.load_state_dict(model.score.state_dict())
    assert abs(expected_score(model, ids) - expected_score(base, ids)) > 0.1


@pytest.mark.parametrize(
    ("inputs", "shared"),
    [
        ([[1, 2, 3]], 0),
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2], [1, 2, 3]], 1),
        ([[7, 2], [1, 2]], 0),
        ([[1], [1, 2, 3]], 0),
        ([[1, 5, 3, 4], [1, 5, 9], [1, 5, 3, 1, 1]], 2),
    ],
)
def test_what_all_inputs_begin_with_leaves_each_a_token(
    inputs: list[list[int]], shared: int
) -> None:
    assert shared_tokens(inputs) == shared


def test_a_prompt_with_many_answers_is_fed_once(scored: World) -> None:
    prompt = [5] * 400
    with serve(scored) as client:
        score(client, "ad_reward", [5])
        fed = count_fed(engine_of(client).base.model)
        score(client, "ad_reward", *([*prompt, answer] for answer in range(10, 74)))
    assert sum(fed) == len(prompt) + 64


def count_fed(model: Any) -> list[int]:
    """How many tokens each forward below a head gets, from now on."""
    fed: list[int] = []
    forward = model.last_hidden

    def counted(token_ids: Any, *rest: Any) -> Any:
        fed.append(len(token_ids))
        return forward(token_ids, *rest)

    model.last_hidden = counted
    return fed
