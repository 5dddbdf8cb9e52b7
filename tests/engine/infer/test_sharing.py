"""Many requests at once: they do not touch each other, they wait in bounds, and they can leave."""

from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import httpx

from tests.engine.infer.world import (
    SENTENCES,
    World,
    complete,
    engine_of,
    error_of,
    hang_up,
    metric,
    serve,
    until,
)

ENDLESS = {"prompt": SENTENCES[0], "max_tokens": 8000, "ignore_eos": True, "temperature": 0}


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["text"]
    return text


def is_idle(client: httpx.Client) -> bool:
    return engine_of(client).scheduler.running == 0


def test_a_seeded_request_gets_the_same_tokens_whatever_else_runs(client: httpx.Client) -> None:
    body = {"prompt": SENTENCES[1], "max_tokens": 30, "ignore_eos": True, "temperature": 1.2}
    asked = [(name, seed) for name in ("tiny", "ad_rank8", "ad_part") for seed in (1, 2)]
    alone = [text_of(complete(client, **body, model=name, seed=seed)) for name, seed in asked]
    with ThreadPoolExecutor(24) as threads:
        noise = [threads.submit(complete, client, **body, model="ad_rank4") for _ in range(12)]
        loaded = [
            threads.submit(complete, client, **body, model=name, seed=seed) for name, seed in asked
        ]
        wait(noise)
    assert [text_of(each.result()) for each in loaded] == alone
    assert len(set(alone)) == len(alone)
    assert len({text_of(each.result()) for each in noise}) > 1  # no seed: each its own


def test_the_choices_of_a_seeded_request_differ_and_repeat(client: httpx.Client) -> None:
    body = {"prompt": SENTENCES[1], "max_tokens": 12, "temperature": 1.5, "seed": 5, "n": 4}
    first, second = (complete(client, **body)["choices"] for _ in range(2))
    assert first == second
    assert len({choice["text"] for choice in first}) == 4


def test_closing_a_stream_ends_its_sequence(client: httpx.Client) -> None:
    body = {"model": "tiny", **ENDLESS, "stream": True, "n": 3}
    before = metric(client, "luthier_inference_generated_tokens_total")
    with client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
        assert not is_idle(client)
    until(lambda: is_idle(client))
    until(lambda: metric(client, "luthier_inference_sequences") == 0)
    made = metric(client, "luthier_inference_generated_tokens_total") - before
    assert made < 3 * 8000 / 2
    assert metric(client, 'luthier_inference_requests_total{outcome="cancelled"}') >= 1


def test_hanging_up_before_the_answer_ends_its_sequences(client: httpx.Client) -> None:
    body = {"model": "ad_rank4", **ENDLESS, "n": 2}
    complete(client, model="ad_rank4", prompt="x", max_tokens=1)
    before = metric(client, "luthier_inference_generated_tokens_total")
    hang_up(client, "/v1/completions", body, when=lambda: not is_idle(client))
    until(lambda: is_idle(client))
    until(lambda: metric(client, "luthier_inference_sequences") == 0)
    assert metric(client, "luthier_inference_generated_tokens_total") - before < 8000


def test_more_than_the_queue_holds_is_told_to_come_back(world: World) -> None:
    with (
        serve(world, max_running=1, max_waiting=2) as client,
        ThreadPoolExecutor(3) as threads,
    ):
        body = {**ENDLESS, "max_tokens": 150}
        held = [threads.submit(complete, client, **body) for _ in range(3)]
        until(lambda: metric(client, "luthier_inference_sequences") == 3)
        refused = client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert (refused.status_code, error_of(refused)["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        streamed = {"model": "tiny", "prompt": "x", "stream": True}
        assert client.post("/v1/completions", json=streamed).status_code == 429
        assert len({text_of(each.result()) for each in held}) == 1
        complete(client, prompt="x", max_tokens=1)  # there is room again


def test_a_stopping_server_tells_those_who_wait(world: World) -> None:
    with serve(world) as client, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.post, "/v1/completions", json={"model": "tiny", **ENDLESS})
        until(lambda: not is_idle(client))
        engine_of(client).scheduler.stop()
        response = waiting.result()
        assert (response.status_code, error_of(response)["code"]) == (503, "server_stopping")
        assert client.get("/health").status_code == 503
        late = client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert late.status_code == 503
