"""Through vLLM a client gets what Luthier's own engine would have said, token for token."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.vllm.service import Two, generate, questions, streamed

NAMES = ["small", "rslora", "some", None]


def model_of(adapters: dict[str, str], name: str | None) -> dict[str, Any]:
    return {"base_model": "luthier-tiny"} if name is None else {"adapter_id": adapters[name]}


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_and_their_logprobs_are_those_of_our_engine(
    services: Two, adapters: dict[str, str], name: str | None
) -> None:
    for messages in questions(6):
        asked = model_of(adapters, name) | {"messages": messages, "logprobs": 2}
        ours, theirs = generate(services.ours, **asked), generate(services.vllm, **asked)
        mine, other = ours.pop("logprobs"), theirs.pop("logprobs")
        assert theirs == ours
        assert other["tokens"] == mine["tokens"]
        assert other["token_logprobs"] == pytest.approx(mine["token_logprobs"], abs=1e-3)
        assert other.keys() == mine.keys()


def test_the_adapters_say_different_things(services: Two, adapters: dict[str, str]) -> None:
    found = set()
    for name in NAMES:
        asked = model_of(adapters, name) | {"messages": questions(1)[0], "logprobs": 0}
        found.add(tuple(generate(services.vllm, **asked)["logprobs"]["token_logprobs"]))
    assert len(found) == len(NAMES)


def test_a_stream_says_the_same(services: Two, adapters: dict[str, str]) -> None:
    for messages in questions(3):
        asked = {"messages": messages, "adapter_id": adapters["rslora"]}
        whole = generate(services.vllm, **asked)
        del whole["logprobs"]
        assert streamed(services.vllm, **asked) == whole == streamed(services.ours, **asked)


def test_stop_strings_and_lengths_end_an_answer_alike(
    services: Two, adapters: dict[str, str]
) -> None:
    asked = {"messages": questions(1)[0], "adapter_id": adapters["small"]}
    text = generate(services.ours, **asked)["text"]
    for more in ({"stop": [text[5:8]]}, {"max_tokens": 3}, {"max_tokens": 5000}):
        mine, theirs = (
            generate(client, **(asked | more)) for client in (services.ours, services.vllm)
        )
        assert theirs == mine


def test_a_prompt_beyond_the_context_is_refused_alike(services: Two) -> None:
    for client in (services.ours, services.vllm):
        answer = client.post("/generate", json={"prompt": "the bell is broken. " * 200})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (
            400,
            "context_length_exceeded",
            "prompt",
        )


def test_many_requests_for_several_adapters_at_once_get_each_its_own_answer(
    services: Two, adapters: dict[str, str]
) -> None:
    asked = [
        model_of(adapters, name) | {"messages": messages}
        for messages in questions(6)
        for name in NAMES
    ]
    alone = [generate(services.ours, **body) for body in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda body: generate(services.vllm, **body), asked))
    assert together == alone
