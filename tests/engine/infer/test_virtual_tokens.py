"""Prompt and prefix tuning when they are served: room in the context, and what does not fit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.infer.world import SENTENCES, World, complete, error_of, serve, write_base

KINDS = ("prompt_tuning", "prefix_tuning")
CONTEXT, COUNT = 64, 5
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base that reads 64 tokens, with an adapter of each kind."""
    base = write_base(tmp_path_factory.mktemp("base"), context=CONTEXT)
    world = World(tmp_path_factory.mktemp("adapters"), base)
    for kind in KINDS:
        world.add_virtual_tokens(f"ad_{kind}", kind, count=COUNT)
    return world


@pytest.fixture(scope="module")
def served(small: World) -> Iterator[httpx.Client]:
    with serve(small) as client:
        yield client


@pytest.mark.parametrize("kind", KINDS)
def test_virtual_tokens_take_their_room_in_the_context(served: httpx.Client, kind: str) -> None:
    body: dict[str, Any] = {"model": f"ad_{kind}", "ignore_eos": True, "temperature": 0}
    answer = complete(served, prompt=[5] * 50, max_tokens=1000, **body)
    assert answer["usage"] == {
        "prompt_tokens": 50,
        "completion_tokens": CONTEXT - COUNT - 50,
        "total_tokens": CONTEXT - COUNT,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert complete(served, prompt=[5] * 58, **body)["usage"]["completion_tokens"] == 1
    full = served.post("/v1/completions", json={"prompt": [5] * 59, **body})
    assert error_of(full)["code"] == "context_length_exceeded"
    assert f"{COUNT} of them the adapter's virtual ones" in error_of(full)["message"]
    complete(served, prompt=[5] * 60, model="tiny", max_tokens=4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_sequence_leaves_nothing_for_the_next(served: httpx.Client, kind: str) -> None:
    body = {"model": f"ad_{kind}", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    first, *others = (complete(served, prompt=SENTENCES[0], **body)["choices"] for _ in range(3))
    complete(served, prompt=SENTENCES[1], **body)
    assert all(choices == first for choices in others)


def refusal(world: World, kind: str, spoil: Callable[[Path], object]) -> str:
    spoil(world.add_virtual_tokens("ad_x", kind, count=COUNT, probes=False))
    with serve(world) as client:
        answer = client.post("/v1/completions", json={"model": "ad_x", "prompt": "The"})
    error = error_of(answer)
    assert error["code"] == "adapter_invalid"
    return str(error["message"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_virtual_tokens": 4}, "says otherwise"),
        ({"peft_type": "LORA"}, "is not that of a"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(
    own_world: World, kind: str, changes: dict[str, object], said: str
) -> None:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))

    assert said in refusal(own_world, kind, spoil)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: {"prompt_embeddings": weights[:, :-1].clone()}, "the base takes"),
        (lambda weights: {"prompt_embeddings": weights.flatten()}, "not one matrix"),
        (lambda weights: {"prompt_embeddings": weights, "more": weights.clone()}, "not one matrix"),
        (lambda weights: {"prompt_embeddings": weights * float("nan")}, "not finite"),
        (lambda weights: {"prompt_embeddings": weights[:0].clone()}, "0 virtual tokens"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    own_world: World, kind: str, change: Callable[[torch.Tensor], Tensors], said: str
) -> None:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)["prompt_embeddings"]), path)

    assert said in refusal(own_world, kind, spoil)


@pytest.mark.parametrize("kind", KINDS)
def test_more_virtual_tokens_than_context_are_refused(small: World, kind: str) -> None:
    small.add_virtual_tokens("ad_long", kind, count=CONTEXT, probes=False)
    with serve(small) as client:
        answer = client.post("/v1/completions", json={"model": "ad_long", "prompt": "The"})
    assert "leave no room in a context of 64" in error_of(answer)["message"]
