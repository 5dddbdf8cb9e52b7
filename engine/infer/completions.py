"""From a completion request to its sequences and back: admission, adapter, prompts, choices."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from tokenizers import Tokenizer

from engine.infer.admission import Admission
from engine.infer.choice import Choice, Shape
from engine.infer.composition import together
from engine.infer.errors import RequestInvalid
from engine.infer.events import EventQueue
from engine.infer.generator import Failed, Generator, Output, Scored, SequenceRequest
from engine.infer.grammar import Grammar
from engine.infer.grammars import Grammars
from engine.infer.loader import Served
from engine.infer.metrics import Metrics
from engine.infer.prompt import EncodedPrompt, encode_prompt, room_for
from engine.infer.residency import Residency
from engine.infer.wire import CompletionRequest


@dataclass(slots=True)
class Answer:
    """What the parts of an answer have in common."""

    model: str
    choices: list[Choice]
    prompt_tokens: int
    choices_per_prompt: int = 1
    id: str = field(default_factory=lambda: f"cmpl-{uuid4().hex[:24]}")
    created: int = field(default_factory=lambda: int(time.time()))

    def wire(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def usage(self) -> dict[str, Any]:
        """A prompt that is continued n times counts once, and so does what was known of it."""
        generated = sum(choice.generated for choice in self.choices)
        reused = sum(choice.reused for choice in self.choices[:: self.choices_per_prompt])
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": reused},
        }


class Completions:
    """Runs completion requests on a generator, as many at once as `admission` lets in."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        generator: Generator,
        residency: Residency,
        admission: Admission,
        metrics: Metrics,
        grammars: Grammars,
    ) -> None:
        self._tokenizer, self._generator, self._grammars = tokenizer, generator, grammars
        self._residency, self._admission, self._metrics = residency, admission, metrics

    async def run(
        self, body: CompletionRequest
    ) -> AsyncGenerator[tuple[Answer, Choice | None], None]:
        """Yields the answer once it has started, then each choice that something was added to.

        Close it to cancel what still runs. Raises EngineErrors, of the request before the first
        yield and of the generation after it.
        """
        asked = time.monotonic()
        with self._admission.hold(len(body.prompts) * body.n, param="n"):
            grammar = await self._grammar_of(body)
            async with self._use(body) as served:
                _check_generates(served)
                prompts = await self._encode(body)
                answer, requests = self._plan(body, served, prompts, grammar)
                self._metrics.tokens_in.inc(answer.prompt_tokens)
                events = EventQueue()
                tickets = [
                    self._generator.submit(request, events.sink(number))
                    for number, request in enumerate(requests)
                ]
                try:
                    yield answer, None
                    async for choice in self._follow(answer, events, asked):
                        yield answer, choice
                finally:
                    for ticket in tickets:
                        ticket.cancel()

    async def _grammar_of(self, body: CompletionRequest) -> Grammar | None:
        if body.kept_to is None:
            return None
        schema, param = body.kept_to
        return await self._grammars.get(schema, param)

    @asynccontextmanager
    async def _use(self, body: CompletionRequest) -> AsyncIterator[Served]:
        if body.adapters is None:
            async with self._residency.use(body.model) as served:
                yield served
            return
        names = [body.model, *(each.id for each in body.adapters)]
        weights = [each.weight for each in body.adapters]
        async with self._residency.use_all(names) as (base, *parts):
            yield await asyncio.to_thread(together, base, parts, weights)

    async def _follow(
        self, answer: Answer, events: EventQueue, asked: float
    ) -> AsyncGenerator[Choice, None]:
        live, first = len(answer.choices), True
        tokens = self._metrics.adapter_tokens.labels(self._metrics.label_of(answer.model))
        last: dict[int, float] = {}  # when each choice got its last token
        while live:
            number, event = await events.get()
            if isinstance(event, Failed):
                raise event.error
            assert not isinstance(event, Scored), "it was asked to generate"
            choice = answer.choices[number]
            choice.add(event)
            if isinstance(event, Output):
                live -= event.finish is not None
                now = time.monotonic()
                if event.token_id is not None:
                    self._metrics.tokens_out.inc()
                    tokens.inc()
                if number in last:
                    self._metrics.token_seconds.observe(now - last[number])
                last[number] = now
                if first:
                    self._metrics.first_token_seconds.observe(now - asked)
                    first = False
            yield choice

    async def _encode(self, body: CompletionRequest) -> list[EncodedPrompt]:
        """Long prompts take a while: off the event loop."""

        def encode() -> list[EncodedPrompt]:
            return [
                encode_prompt(self._tokenizer, prompt, echo=body.echo) for prompt in body.prompts
            ]

        if not body.prompts:
            raise RequestInvalid("There is no prompt.", param="prompt", code="empty_prompt")
        return await asyncio.to_thread(encode)

    def _plan(
        self,
        body: CompletionRequest,
        served: Served,
        prompts: list[EncodedPrompt],
        grammar: Grammar | None,
    ) -> tuple[Answer, list[SequenceRequest]]:
        """A sequence and a choice for each of the n continuations of each prompt."""
        stops = frozenset(body.stop_token_ids or ())
        if not body.ignore_eos:
            stops |= served.stop_token_ids
        shape = Shape(body.echo, body.logprobs is not None, body.return_token_ids)
        tokens = sum(len(prompt.ids) for prompt in prompts)
        answer = Answer(body.model, [], tokens, body.n)
        _check_bias(served, body)
        requests = []
        for prompt in prompts:
            max_tokens = room_for(served, prompt, body.max_tokens)
            for index in range(body.n):
                answer.choices.append(Choice(self._tokenizer, len(answer.choices), prompt, shape))
                requests.append(
                    SequenceRequest(
                        model=served.model,
                        lora=served.lora,
                        virtual_tokens=served.virtual_tokens,
                        prompt_ids=prompt.ids,
                        max_tokens=max_tokens,
                        sampling=body.sampling,
                        index=index,
                        stop=body.stops,
                        stop_token_ids=stops,
                        logprobs=body.logprobs,
                        score_prompt=body.echo and body.logprobs is not None,
                        tenant=body.user or "",
                        scope=json.dumps([body.user, served.name]),
                        grammar=grammar,
                    )
                )
        return answer, requests


def _check_bias(served: Served, body: CompletionRequest) -> None:
    """Raises RequestInvalid where a token id is none of the model's."""
    highest = max(body.logit_bias or {}, default=0)
    if highest >= served.model.vocabulary:
        raise RequestInvalid(
            f"Token id {highest} is not in the model's vocabulary of {served.model.vocabulary}; "
            "take the ids from the model's own tokenizer.",
            param="logit_bias",
            code="invalid_token_id",
        )


def _check_generates(served: Served) -> None:
    if served.head is not None:
        raise RequestInvalid(
            f"Model {served.name!r} is a reward model: it scores answers and writes none. Ask it "
            "with POST /v1/score, or name an adapter that generates.",
            param="model",
            code="adapter_cannot_generate",
            status=422,
        )
