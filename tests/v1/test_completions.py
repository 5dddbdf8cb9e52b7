"""POST /v1/completions by OpenAI's own client, against a real API and inference server."""

import asyncio
from typing import Any

import openai
import pytest
import torch

from tests.engine.infer.world import SENTENCES, load
from tests.v1.conftest import Live

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


def test_a_prompt_is_continued(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="say", **GREEDY)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    short = client.completions.create(model="tiny", prompt="say", temperature=0)
    assert short.usage is not None
    assert short.usage.completion_tokens == 16
    assert short.choices[0].text.startswith(choice.text)


def test_prompts_are_texts_or_token_ids_one_or_several(client: openai.OpenAI, live: Live) -> None:
    texts = ["say", "the quick brown"]
    ids = [live.world.ids(text) for text in texts]
    alone = [
        client.completions.create(model="tiny", prompt=text, **GREEDY).choices[0].text
        for text in texts
    ]
    by_ids = client.completions.create(model="tiny", prompt=ids[0], **GREEDY)
    assert by_ids.choices[0].text == alone[0]
    for prompts in (texts, ids):
        answer = client.completions.create(model="tiny", prompt=prompts, n=2, **GREEDY)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in answer.choices] == [
            alone[0], alone[0], alone[1], alone[1],
        ]  # fmt: skip
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, ids))


def test_an_echo_with_log_probs_scores_the_prompt(client: openai.OpenAI, live: Live) -> None:
    """As lm-eval asks: no text is made but what the prompt's tokens are worth."""
    text = SENTENCES[0]
    ids = live.world.ids(text)
    model = load(live.world.base)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(logits[i, token]) for i, token in enumerate(ids[1:])]
    for prompt in (text, ids):
        answer = client.completions.create(
            model="tiny", prompt=prompt, echo=True, logprobs=1, max_tokens=0
        )
        (choice,) = answer.choices
        assert choice.text == text
        found = choice.logprobs
        assert found is not None
        assert found.token_logprobs is not None
        assert found.token_logprobs[0] is None
        assert found.token_logprobs[1:] == pytest.approx(expected, abs=1e-3)
        assert found.tokens is not None
        assert found.text_offset is not None
        assert "".join(found.tokens) == text
        for token, at in zip(found.tokens, found.text_offset, strict=True):
            assert text[at : at + len(token)] == token
        assert found.top_logprobs is not None
        assert all(len(top) in (1, 2) for top in found.top_logprobs[1:])
    longer = client.completions.create(
        model="tiny", prompt=text, echo=True, logprobs=0, max_tokens=3, temperature=0
    )
    assert longer.choices[0].text.startswith(text)
    assert longer.choices[0].logprobs is not None
    assert len(longer.choices[0].logprobs.tokens or []) == len(ids) + 3


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": ["say", "the"], "echo": True, "logprobs": 1, **GREEDY}
    whole = client.completions.create(model="tiny", **asked)
    chunks = list(
        client.completions.create(
            model="tiny", stream=True, stream_options={"include_usage": True}, **asked
        )
    )
    texts, tokens, reasons = ["", ""], [[], []], ["", ""]  # type: Any
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] += choice.finish_reason or ""
            if choice.logprobs is not None:
                tokens[choice.index] += choice.logprobs.tokens
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == ["length", "length"]
    assert tokens == [choice.logprobs and choice.logprobs.tokens for choice in whole.choices]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_an_adapter_continues_otherwise(client: openai.OpenAI, live: Live) -> None:
    base, tuned = (
        client.completions.create(model=model, prompt="say", **GREEDY).choices[0].text
        for model in ("tiny", live.adapter_id)
    )
    assert base != tuned


def test_the_async_client_continues_the_same(client: openai.OpenAI, live: Live) -> None:
    async def ask() -> str:
        async with live.async_client() as own:
            stream = await own.completions.create(model="tiny", prompt="say", stream=True, **GREEDY)
            return "".join([chunk.choices[0].text async for chunk in stream])

    whole = client.completions.create(model="tiny", prompt="say", **GREEDY)
    assert asyncio.run(ask()) == whole.choices[0].text


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"model": "gpt-9"}, 404, "model", "No model with id"),
        ({"best_of": 3}, 422, "body", "best_of"),
        ({"suffix": "x"}, 422, "suffix", "at the end alone"),
        ({"max_tokens": 0}, 422, "body", "echo"),
        ({"logprobs": 21}, 422, "logprobs", "20"),
        ({"prompt": []}, 422, "prompt", "1 to 256 prompts"),
        ({"prompt": [99_999]}, 400, "prompt", "vocabulary"),
        ({"prompt": [[]]}, 422, "prompt", "1 to 256 prompts"),
        ({"prompt": ""}, 400, "prompt", "no prompt"),
        ({"prompt": {"a": 1}}, 422, "prompt", "a text, a list of token ids"),
        ({"prompt": "x " * 9000}, 400, "prompt", "context"),
        ({"tools": []}, 422, "tools", "no such field"),
    ],
)
def test_what_cannot_be_done_is_refused_at_its_field(
    client: openai.OpenAI, body: dict[str, Any], status: int, param: str, says: str
) -> None:
    asked = {"prompt": "say", "model": "tiny"} | body
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(
            model=asked.pop("model"), prompt=asked.pop("prompt"), extra_body=asked
        )
    assert (caught.value.status_code, caught.value.param) == (status, param), caught.value
    assert says in caught.value.message
