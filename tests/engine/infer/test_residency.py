"""Adapters come into memory when asked for, once, and leave it only when nobody uses them."""

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.infer import residency
from engine.infer.errors import AdapterUnavailable
from tests.engine.infer.world import (
    BASE_NAME,
    SENTENCES,
    World,
    complete,
    engine_of,
    error_of,
    load,
    metric,
    serve,
    until,
)

LOADED = 'luthier_inference_adapter_loads_total{outcome="ok"}'
SHORT = {"prompt": "The", "max_tokens": 2, "temperature": 0}


def ask(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/v1/completions", json={"model": name, **SHORT})


def resident(client: httpx.Client) -> set[str]:
    models = client.get("/v1/models").json()["data"]
    return {model["id"] for model in models} - {BASE_NAME}


def test_many_who_ask_for_an_adapter_at_once_share_one_load(world: World) -> None:
    with serve(world) as client, ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: ask(client, "ad_rank8").json(), range(12)))
        assert len({answer["choices"][0]["text"] for answer in answers}) == 1
        assert metric(client, LOADED) == 1


def test_a_slow_fetch_does_not_hold_up_the_others(world: World) -> None:
    gate = threading.Event()

    def fetch(name: str) -> Path:
        assert gate.wait(90)
        return world.fetch(name)

    with serve(world, fetch=fetch) as client, ThreadPoolExecutor(1) as threads:
        slow = threads.submit(ask, client, "ad_rank8")
        until(lambda: metric(client, "luthier_inference_sequences") == 1)
        assert ask(client, BASE_NAME).status_code == 200
        assert not slow.done()
        gate.set()
        assert slow.result().status_code == 200


def test_the_adapter_unused_for_longest_makes_room(world: World) -> None:
    with serve(world, max_resident=2) as client:
        for name in ("ad_rank4", "ad_rank8", "ad_rank4", "ad_part"):
            assert ask(client, name).status_code == 200
        assert resident(client) == {"ad_rank4", "ad_part"}
        assert metric(client, 'luthier_inference_resident_adapters{kind="adapter"}') == 2
        assert metric(client, "luthier_inference_adapter_evictions_total") == 1
        again = ask(client, "ad_rank8").json()
    with serve(world) as client:
        assert ask(client, "ad_rank8").json()["choices"] == again["choices"]


def test_an_adapter_in_use_is_not_put_out(world: World) -> None:
    body = {"prompt": "The", "max_tokens": 300, "temperature": 0, "ignore_eos": True}
    with serve(world, max_resident=1) as client, ThreadPoolExecutor(2) as threads:
        alone = complete(client, model="ad_rank4", **body)["choices"]
        long = threads.submit(complete, client, model="ad_rank4", **body)
        until(lambda: engine_of(client).scheduler.running == 1)
        waiting = threads.submit(ask, client, "ad_rank8")
        assert long.result()["choices"] == alone
        assert waiting.result().status_code == 200
        assert resident(client) == {"ad_rank8"}


def test_full_models_are_kept_by_count_and_by_bytes(own_world: World) -> None:
    for seed, name in enumerate(("ad_one", "ad_two"), start=20):
        own_world.add_full(name, seed=seed)
    size = sum(tensor.nbytes for tensor in load_file(own_world.base / "model.safetensors").values())
    with serve(own_world, max_full_models=1) as client:
        assert ask(client, "ad_one").json() != ask(client, "ad_two").json()
        assert resident(client) == {"ad_two"}
    with serve(own_world, max_full_models=9, max_full_model_bytes=int(1.5 * size)) as client:
        for name in ("ad_one", "ad_two"):
            assert ask(client, name).status_code == 200
        assert resident(client) == {"ad_two"}
    with serve(own_world, max_full_model_bytes=size // 2) as client:
        assert error_of(ask(client, "ad_one"))["code"] == "adapter_too_large"


def test_a_deleted_adapter_is_gone_from_memory_too(
    own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_RECHECK_AFTER_S", 0.0)
    folder = own_world.add_lora("ad_x")
    with serve(own_world) as client:
        assert ask(client, "ad_x").status_code == 200
        shutil.rmtree(folder)
        unknown = ask(client, "ad_y")
        deleted = ask(client, "ad_x")
        assert deleted.status_code == 404
        assert deleted.text == unknown.text.replace("ad_y", "ad_x")
        assert resident(client) == set()


def test_a_store_that_is_down_does_not_end_the_service_of_what_is_in_memory(
    own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_RECHECK_AFTER_S", 0.0)
    own_world.add_lora("ad_x")
    down = threading.Event()

    def fetch(name: str) -> Path:
        if down.is_set():
            raise AdapterUnavailable("The store does not answer.")
        return own_world.fetch(name)

    with serve(own_world, fetch=fetch) as client:
        before = ask(client, "ad_x").json()["choices"]
        down.set()
        assert ask(client, "ad_x").json()["choices"] == before
        new = ask(client, "ad_new")
        assert (new.status_code, error_of(new)["code"]) == (503, "adapter_unavailable")
        assert int(new.headers["retry-after"]) >= 1
        down.clear()
        assert ask(client, "ad_new").status_code == 404  # failing to fetch is not remembered


def test_a_fetch_that_breaks_is_no_500_and_tells_nothing_of_the_inside(world: World) -> None:
    def fetch(name: str) -> Path:
        raise RuntimeError("secret-path")

    with serve(world, fetch=fetch) as client:
        response = ask(client, "ad_rank4")
        assert (response.status_code, error_of(response)["code"]) == (503, "adapter_unavailable")
        assert "secret-path" not in response.text


def test_an_adapter_that_answers_otherwise_than_in_training_is_refused(own_world: World) -> None:
    folder = own_world.add_lora("ad_x")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["probes"][1]["logprobs"][2] += 0.01
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with serve(own_world) as client:
        response = ask(client, "ad_x")
        assert (response.status_code, error_of(response)["code"]) == (422, "adapter_mismatch")
        assert "token 6 of probe 1" in error_of(response)["message"]
        assert "0.0100 is above the tolerance 0.002" in error_of(response)["message"]
        fetched = len(own_world.fetched)
        assert ask(client, "ad_x").text == response.text
        assert len(own_world.fetched) == fetched  # not tried again for a while
        assert resident(client) == set()
        assert metric(client, 'luthier_inference_resident_adapters{kind="adapter"}') == 0
    with serve(own_world, probe_tolerance=0.05) as client:
        assert ask(client, "ad_x").status_code == 200


@pytest.mark.parametrize("probes", [True, False])
def test_an_adapter_that_changes_nothing_is_refused(probes: bool, own_world: World) -> None:
    own_world.add_lora("ad_x", probes=probes, init_lora_weights=True)  # B is zero
    with serve(own_world) as client:
        response = ask(client, "ad_x")
        assert (response.status_code, error_of(response)["code"]) == (422, "adapter_no_effect")


def test_a_full_model_equal_to_its_base_is_refused(own_world: World) -> None:
    shutil.copytree(own_world.base, own_world.root / "ad_x")
    own_world.describe("ad_x", "full", load(own_world.base))
    with serve(own_world) as client:
        assert error_of(ask(client, "ad_x"))["code"] == "adapter_no_effect"


def test_an_adapter_without_probes_is_served_when_it_changes_something(own_world: World) -> None:
    own_world.add_lora("ad_x", probes=False)
    with serve(own_world) as client:
        assert ask(client, "ad_x").status_code == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "where A and B and magnitude_vector belong"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "is not that of a LORA adapter"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"alpha_pattern": {"(a+)+$": 4}}, "alpha_pattern"),
    ],
)
def test_lora_that_this_server_cannot_compute_is_refused(
    changes: dict[str, object], said: str, own_world: World
) -> None:
    folder = own_world.add_lora("ad_x", probes=False)
    config = json.loads((folder / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with serve(own_world) as client:
        error = error_of(ask(client, "ad_x"))
        assert error["code"] == "adapter_invalid"
        assert said in error["message"]


def weights_without_b(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        key: tensor for key, tensor in weights.items() if "layers.0.mlp.up_proj.lora_B" not in key
    }


def weights_elsewhere(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.replace("layers.1", "layers.7"): tensor for key, tensor in weights.items()}


def weights_too_narrow(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor[:, :-1].contiguous() for key, tensor in weights.items()}


def weights_with_a_magnitude(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"
    return {**weights, name: torch.ones(96)}


def weights_not_finite(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor * float("nan") for key, tensor in weights.items()}


def weights_of_something_else(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "base_model.model.lm_head.weight": torch.zeros(3)}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (weights_without_b, "has A where A and B belong"),
        (weights_elsewhere, "is not a linear layer"),
        (weights_too_narrow, "the base's layer is"),
        (weights_with_a_magnitude, "where A and B belong"),
        (weights_not_finite, "not finite"),
        (weights_of_something_else, "no part of a linear layer's LoRA"),
        (lambda _: {}, "no weights"),
    ],
)
def test_lora_weights_that_do_not_fit_are_refused(
    spoil: object, said: str, own_world: World
) -> None:
    path = own_world.add_lora("ad_x", probes=False) / "adapter_model.safetensors"
    assert callable(spoil)
    save_file(spoil(load_file(path)), path)
    with serve(own_world) as client:
        error = error_of(ask(client, "ad_x"))
        assert error["code"] == "adapter_invalid"
        assert said in error["message"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda magnitude: magnitude[:-1].clone(), "magnitudes for"),
        (lambda magnitude: magnitude[None].clone(), "magnitudes for"),
        (lambda magnitude: magnitude * float("inf"), "DoRA magnitudes do not fit"),
    ],
)
def test_magnitudes_that_do_not_fit_are_refused(
    spoil: Callable[[torch.Tensor], torch.Tensor], said: str, own_world: World
) -> None:
    folder = own_world.add_lora("ad_x", use_dora=True, probes=False)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(key for key in weights if "magnitude" in key)
    save_file({**weights, name: spoil(weights[name])}, path)
    with serve(own_world) as client:
        error = error_of(ask(client, "ad_x"))
        assert error["code"] == "adapter_invalid"
        assert said in error["message"]


def test_an_adapter_whose_answers_are_no_numbers_is_refused(own_world: World) -> None:
    path = own_world.add_lora("ad_x", probes=False) / "adapter_model.safetensors"
    save_file({key: tensor * 1e15 for key, tensor in load_file(path).items()}, path)
    with serve(own_world) as client:
        assert error_of(ask(client, "ad_x"))["code"] == "adapter_diverged"
        assert ask(client, BASE_NAME).status_code == 200


def test_a_full_model_that_wants_code_or_lacks_weights_is_refused(own_world: World) -> None:
    config = json.loads((own_world.add_full("ad_code") / "config.json").read_bytes())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Canary"}
    (own_world.root / "ad_code" / "config.json").write_text(json.dumps(config))
    canary = own_world.root / "canary"
    (own_world.root / "ad_code" / "modeling.py").write_text(
        f"open({str(canary)!r}, 'w')\nclass Canary: pass\n"
    )
    weights = own_world.add_full("ad_gap") / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with serve(own_world) as client:
        assert error_of(ask(client, "ad_code"))["code"] == "model_needs_code"
        gap = error_of(ask(client, "ad_gap"))
        assert gap["code"] == "adapter_invalid"
        assert "model.layers.1.mlp.up_proj.weight" in gap["message"]
    assert not canary.exists()


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "other"}'])
def test_an_adapter_with_a_bad_manifest_is_refused(text: str, own_world: World) -> None:
    (own_world.add_lora("ad_x") / "manifest.json").write_text(text)
    with serve(own_world) as client:
        assert error_of(ask(client, "ad_x"))["code"] == "adapter_invalid"


def test_patterns_of_rank_and_alpha_are_those_of_peft(own_world: World) -> None:
    folder = own_world.add_lora(
        "ad_x", rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.mlp.up_proj": 3}
    )
    assert json.loads((folder / "adapter_config.json").read_bytes())["rank_pattern"]
    with serve(own_world) as client:  # the probes come from peft's own forward
        complete(client, model="ad_x", prompt=SENTENCES[0], max_tokens=2)


def test_a_full_model_that_is_refused_leaves_nothing_in_the_engine(own_world: World) -> None:
    folder = own_world.add_full("ad_full", seed=2)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["probes"][0]["logprobs"][0] += 1.0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with serve(own_world) as client:
        assert error_of(ask(client, "ad_full"))["code"] == "adapter_mismatch"
        engine = engine_of(client)
        until(lambda: engine.scheduler._batches.keys() <= {engine.base.model})


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["ad_rank4", "ad_rank8"], {"max_resident_bytes": 60_000}),
        (["ad_full", "ad_second"], {"max_full_models": 1}),
    ],
    ids=["bytes", "full models"],
)
def test_adapters_that_have_no_room_together_are_refused_and_hold_nobody_up(
    names: list[str], options: dict[str, int], world: World
) -> None:
    if not (world.root / "ad_second").is_dir():
        world.add_full("ad_second", seed=11)
    body = {"model": BASE_NAME, **SHORT}
    with serve(world, **options) as client:
        for given in (names, names[:1]):
            adapters = {"adapters": [{"id": name} for name in given]}
            answer = client.post("/v1/completions", json=body | adapters)
            if given == names:
                assert error_of(answer)["code"] == "too_many_adapters"
        assert answer.status_code == (200 if names[0] == "ad_rank4" else 422)


def test_an_adapter_named_as_the_model_of_several_does_not_wait_for_itself(world: World) -> None:
    adapters = {"adapters": [{"id": "ad_rank8"}]}
    with serve(world, max_resident=1) as client:
        body = {"model": "ad_rank4", **SHORT}
        answer = client.post("/v1/completions", json=body | adapters)
        assert error_of(answer)["code"] == "too_many_adapters"
        body["model"] = BASE_NAME
        assert client.post("/v1/completions", json=body | adapters).status_code == 200
