"""POST /v1/chat/completions by OpenAI's own client, against a real API and inference server."""

import asyncio
import json
import math
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.engine.infer.world import until
from tests.v1.conftest import Live

HI: list[Any] = [{"role": "user", "content": "hi"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_completion_tokens": 8, "messages": HI}
CALLING: Any = {
    "role": "assistant",
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    ],
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


class Point(BaseModel):
    x: bool
    y: bool


def ids_of(live: Live, prompt: str, model: str = "tiny", **sampling: Any) -> Any:
    """What POST /generate makes of the same prompt."""
    asked = {"prompt": prompt, "temperature": 0, "max_tokens": 8, **sampling}
    named = {"base_model": model} if model == "tiny" else {"adapter_id": model}
    headers = {"authorization": f"Bearer {live.key}"}
    answer = httpx.post(f"{live.url}/generate", json=asked | named, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_chat_is_rendered_by_the_template_and_answered(client: openai.OpenAI, live: Live) -> None:
    answer = client.chat.completions.create(model="tiny", **GREEDY)
    native = ids_of(live, "user: hi\nassistant: ")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", native["text"])
    assert choice.finish_reason == native["finish_reason"] == "length"
    assert choice.message.tool_calls is None
    assert choice.logprobs is None
    assert answer.model == "tiny"
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens == native["usage"]["prompt_tokens"]
    assert answer.usage.prompt_tokens_details is not None


def test_every_kind_of_message_is_taken(client: openai.OpenAI, live: Live) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"days": 3}'},
    }
    messages: list[Any] = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    answer = client.chat.completions.create(model="tiny", **GREEDY | {"messages": messages})
    written = (
        "system: be kind\nuser: ab\n"
        'assistant: {"name": "weather", "arguments": {"days": 3}}\ntool: rain\nassistant: '
    )
    assert answer.choices[0].message.content == ids_of(live, written)["text"]


def test_an_adapter_answers_by_its_id(client: openai.OpenAI, live: Live) -> None:
    base = client.chat.completions.create(model="tiny", **GREEDY)
    tuned = client.chat.completions.create(model=live.adapter_id, **GREEDY)
    native = ids_of(live, "user: hi\nassistant: ", live.adapter_id)
    assert tuned.choices[0].message.content == native["text"] != base.choices[0].message.content
    assert tuned.model == live.adapter_id
    again = client.chat.completions.create(model=live.adapter_id, **GREEDY)
    assert tuned.system_fingerprint == again.system_fingerprint != base.system_fingerprint
    composed = client.chat.completions.create(
        model="tiny", extra_body={"adapters": [{"adapter_id": live.adapter_id}]}, **GREEDY
    )
    assert composed.choices[0].message.content == native["text"]


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", n=2, seed=3, **GREEDY | {"temperature": 1})
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            n=2,
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY | {"temperature": 1},
        )
    )
    texts, reasons, roles = ["", ""], ["", ""], [0, 0]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += choice.finish_reason or ""
            roles[choice.index] += choice.delta.role == "assistant"
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == [1, 1]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({(c.id, c.created, c.system_fingerprint) for c in chunks}) == 1
    bare = list(client.chat.completions.create(model="tiny", stream=True, **GREEDY))
    assert all(chunk.usage is None and chunk.choices for chunk in bare)


def test_the_helper_for_streams_sees_a_whole_answer(client: openai.OpenAI) -> None:
    text = client.chat.completions.create(model="tiny", **GREEDY).choices[0].message.content or ""
    asked = GREEDY | {"logprobs": True, "top_logprobs": 2, "stop": text[-2:]}  # or it would raise
    whole = client.chat.completions.create(model="tiny", **asked)
    with client.chat.completions.stream(model="tiny", **asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].logprobs is not None
    assert whole.choices[0].logprobs is not None
    assert final.choices[0].logprobs.content == whole.choices[0].logprobs.content


def test_log_probs_are_those_of_the_model(client: openai.OpenAI, live: Live) -> None:
    answer = client.chat.completions.create(model="tiny", logprobs=True, top_logprobs=3, **GREEDY)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    native = ids_of(live, "user: hi\nassistant: ", logprobs=3)["logprobs"]
    assert [each.token for each in found.content] == native["tokens"]
    assert [each.logprob for each in found.content] == pytest.approx(native["token_logprobs"])
    for each in found.content:
        best = [top.logprob for top in each.top_logprobs]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert best[0] == each.logprob  # greedy
        assert sum(map(math.exp, best)) <= 1.0001
        assert each.bytes == (None if "\ufffd" in each.token else list(each.token.encode()))
    alone = client.chat.completions.create(model="tiny", logprobs=True, **GREEDY)
    assert alone.choices[0].logprobs is not None
    assert [each.top_logprobs for each in alone.choices[0].logprobs.content or []] == [[]] * 8


def test_a_bias_forbids_and_forces_tokens(client: openai.OpenAI, live: Live) -> None:
    plain = ids_of(live, "user: hi\nassistant: ", logprobs=0)["logprobs"]["tokens"]
    tokenizer = live.world.tokenizer
    ids = {tokenizer.decode([id], skip_special_tokens=False): id for id in range(400)}
    biased = client.chat.completions.create(
        model="tiny", logprobs=True, logit_bias={str(ids[plain[0]]): -100}, **GREEDY
    )
    assert biased.choices[0].logprobs is not None
    assert plain[0] not in [each.token for each in biased.choices[0].logprobs.content or []]
    z = str(tokenizer.token_to_id("Z"))
    forced = client.chat.completions.create(model="tiny", logit_bias={z: 100}, **GREEDY)
    assert forced.choices[0].message.content == "Z" * 8


def test_stop_seed_and_the_rest_of_sampling_go_through(client: openai.OpenAI, live: Live) -> None:
    whole = ids_of(live, "user: hi\nassistant: ")["text"]
    stopped = client.chat.completions.create(model="tiny", stop=[whole[2:4]], **GREEDY)
    assert stopped.choices[0].message.content == whole[: whole.index(whole[2:4])]
    assert stopped.choices[0].finish_reason == "stop"
    hot = GREEDY | {"temperature": 1.5}
    one, same, other = (
        client.chat.completions.create(model="tiny", seed=seed, **hot).choices[0].message.content
        for seed in (1, 1, 2)
    )
    assert one == same != other
    only = client.chat.completions.create(model="tiny", extra_body={"top_k": 1}, **hot)
    assert only.choices[0].message.content == whole


def test_a_parsed_answer_is_of_its_type(client: openai.OpenAI, live: Live) -> None:
    asked = GREEDY | {"max_completion_tokens": 200, "logit_bias": live.no_blanks}
    answer = client.chat.completions.parse(model="tiny", response_format=Point, seed=1, **asked)
    assert isinstance(answer.choices[0].message.parsed, Point)
    with client.chat.completions.stream(
        model="tiny", response_format=Point, seed=1, **asked
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed
    loose = client.chat.completions.create(
        model="tiny", response_format={"type": "json_object"}, seed=2, **asked
    )
    assert (loose.choices[0].message.content or "").startswith("{")


def test_tools_are_written_by_the_template(client: openai.OpenAI, live: Live) -> None:
    answer = client.chat.completions.create(model="tiny", tools=[WEATHER], **GREEDY)
    written = f"tools: {json.dumps([WEATHER])}\nuser: hi\nassistant: "
    assert answer.choices[0].message.content == ids_of(live, written)["text"]
    without = client.chat.completions.create(
        model="tiny", tools=[WEATHER], tool_choice="none", **GREEDY
    )
    plain = ids_of(live, "user: hi\nassistant: ")["text"]
    assert without.choices[0].message.content == plain


def test_a_call_that_is_insisted_on_keeps_to_its_parameters(
    client: openai.OpenAI, live: Live
) -> None:
    asked = GREEDY | {"max_completion_tokens": 200, "seed": 5, "logit_bias": live.no_blanks}
    named: Any = {"type": "function", "function": {"name": "weather"}}
    answer = client.chat.completions.create(
        model="tiny", tools=[WEATHER, CLOCK], tool_choice=named, **asked
    )
    choice = answer.choices[0]
    assert choice.message.content is None
    assert choice.finish_reason == "stop"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    assert 1 <= json.loads(call.function.arguments)["days"] <= 9
    names = set()
    for seed in range(6):
        answer = client.chat.completions.create(
            model="tiny",
            tools=[WEATHER, CLOCK],
            tool_choice="required",
            **asked | {"seed": seed, "temperature": 1.5},
        )
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        names.add(call.function.name)
        assert isinstance(json.loads(call.function.arguments), dict)
    assert names == {"weather", "clock"}


@pytest.mark.parametrize("several", [False, True])
def test_a_streamed_call_adds_up_to_the_same(
    client: openai.OpenAI, live: Live, several: bool
) -> None:
    tools = [WEATHER, CLOCK] if several else [WEATHER]
    asked = GREEDY | {"max_completion_tokens": 200, "seed": 5, "logit_bias": live.no_blanks}
    asked |= {"tools": tools, "tool_choice": "required", "model": "tiny"}
    (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
    with client.chat.completions.stream(**asked) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    (streamed,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert streamed.function.name == call.function.name
    assert streamed.function.arguments == call.function.arguments
    assert streamed.id.startswith("call_")


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"model": "gpt-9"}, 404, "model", "No model with id 'gpt-9'"),
        ({"model": "ad_" + "0" * 24}, 404, "model", "{checkpoint_id}/publish"),
        ({"messages": []}, 422, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, 422, "messages.0.content", "content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            422,
            "messages.0.content.0.type",
            "'text' or 'refusal'",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, 422, "messages.0.content", "string"),
        ({"top_logprobs": 2}, 422, "body", "logprobs"),
        ({"max_tokens": 5}, 422, "body", "not both"),
        ({"stream_options": {"include_usage": True}}, 422, "body", "stream"),
        ({"modalities": ["text", "audio"]}, 422, "modalities", "text alone"),
        ({"audio": {"voice": "x", "format": "wav"}}, 422, "audio", "text alone"),
        ({"functions": [{"name": "f"}]}, 422, "functions", "tools"),
        ({"reasoning_effort": "high"}, 422, "reasoning_effort", "no such setting"),
        ({"web_search_options": {}}, 422, "web_search_options", "nowhere"),
        ({"logit_bias": {"x": 1}}, 422, "logit_bias.x", "pattern"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias", "vocabulary"),
        ({"tool_choice": "required"}, 422, "tools", "does not have"),
        (
            {"model": "plain", "tools": [WEATHER]},
            422,
            "tools",
            "does not write definitions of tools",
        ),
        (
            {"model": "plain", "messages": [*HI, CALLING]},
            422,
            "messages",
            "does not write calls of tools",
        ),
        ({"best_of": 2}, 422, "best_of", "no such field"),
        ({"stop": ["x"] * 33}, 422, "stop", "at most 32"),
        ({"stop": ["a", ""]}, 422, "stop.1", "at least 1 character"),
        ({"stop": 5}, 422, "stop", "string"),
        ({"messages": HI * 513}, 422, "messages", "512"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, 400, "messages", "context"),
    ],
)
def test_what_cannot_be_done_is_refused_at_its_field(
    client: openai.OpenAI, body: dict[str, Any], status: int, param: str | None, says: str
) -> None:
    asked = GREEDY | {"model": "tiny"} | body
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model=asked.pop("model"), messages=asked.pop("messages"), extra_body=asked
        )
    assert (caught.value.status_code, caught.value.param) == (status, param)
    assert says in caught.value.message
    assert caught.value.request_id
    kind = openai.NotFoundError if status == 404 else openai.APIStatusError
    assert isinstance(caught.value, kind)


@pytest.mark.parametrize(
    "arguments",
    [r'{"a": "\ud800"}', '{"a": NaN}', '{"a": 1e999}', '{"a": ' * 300 + "1" + "}" * 300, "[]"],
)
def test_arguments_that_no_template_could_show_are_refused(
    client: openai.OpenAI, arguments: str
) -> None:
    call: Any = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    said: Any = [*HI, {"role": "assistant", "tool_calls": [call]}, *HI]
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(model="tiny", messages=said)
    assert refused.value.param == "messages.1.tool_calls"


def test_what_is_about_openai_alone_changes_nothing(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="tiny", **GREEDY)
    more: dict[str, Any] = {
        "store": True,
        "metadata": {"a": "b"},
        "user": "me",
        "service_tier": "auto",
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "modalities": ["text"],
        "verbosity": "medium",
        "parallel_tool_calls": True,
        "logit_bias": None,
        "stop": None,
    }
    same = client.chat.completions.create(model="tiny", **GREEDY, **more)
    assert same.choices[0].message.content == plain.choices[0].message.content


def test_another_tenants_adapter_is_no_model(live: Live) -> None:
    unknown, refused = "ad_" + "1" * 24, []
    for model in (live.adapter_id, unknown):
        with (
            live.client(live.tenant_key("theirs")) as stranger,
            pytest.raises(openai.NotFoundError) as caught,
        ):
            stranger.chat.completions.create(model=model, **GREEDY)
        refused.append(caught.value)
    foreign, made_up = refused
    assert (foreign.code, foreign.param) == ("model_not_found", "model")
    assert made_up.message.replace(unknown, live.adapter_id) == foreign.message


def test_a_client_that_goes_away_ends_the_work(client: openai.OpenAI, live: Live) -> None:
    asked = GREEDY | {"max_completion_tokens": 8000}
    stream = client.chat.completions.create(
        model="tiny", stream=True, extra_body={"ignore_eos": True}, **asked
    )
    next(iter(stream))
    metrics = httpx.Client(base_url=live.services.settings.inference, timeout=60)
    name = 'luthier_inference_requests_total{outcome="cancelled"}'
    before = sum(
        float(x.split()[-1])
        for x in metrics.get("/metrics").text.splitlines()
        if x.startswith(name)
    )
    stream.close()
    until(
        lambda: any(
            float(x.split()[-1]) > before
            for x in metrics.get("/metrics").text.splitlines()
            if x.startswith(name)
        )
    )
    metrics.close()


def test_the_async_client_does_the_same_many_times_at_once(live: Live) -> None:
    async def ask() -> list[str | None]:
        async with live.async_client() as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="tiny", **GREEDY) for _ in range(8))
            )
            pieces = await client.chat.completions.create(model="tiny", stream=True, **GREEDY)
            final = "".join([piece.choices[0].delta.content or "" async for piece in pieces])
            parsed = await client.chat.completions.parse(
                model="tiny",
                response_format=Point,
                seed=1,
                **GREEDY | {"max_completion_tokens": 200, "logit_bias": live.no_blanks},
            )
            assert parsed.choices[0].message.parsed is not None
        return [each.choices[0].message.content for each in answers] + [final]

    assert len(set(asyncio.run(ask()))) == 1


def test_tokens_that_were_computed_before_are_told(client: openai.OpenAI) -> None:
    asked = GREEDY | {"messages": [{"role": "user", "content": "a long beginning " * 20}]}
    first, second = (client.chat.completions.create(model="tiny", **asked).usage for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.prompt_tokens_details is not None
    assert second.prompt_tokens_details is not None
    assert first.prompt_tokens_details.cached_tokens == 0
    assert (second.prompt_tokens_details.cached_tokens or 0) >= 32
