"""Judges over HTTP: what graders ask of models goes to the inference server."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from api.calls import in_thread
from api.completions import Usage, complete, score
from api.errors import GeneratorFailed, Invalid
from api.generate import Asked, GenerateBody, ask
from api.paging import known
from api.scoring import REWARD, Input, inputs_of
from api.services import Services
from engine.graders import Answers, Question, Verdict
from jobs.errors import SpecInvalid, SpecProblem
from jobs.model import Adapter

ADAPTER_PREFIX = "ad_"


@dataclass(frozen=True)
class Judged:
    """All answers to a grader's questions, and what each model spent on them."""

    answers: Answers
    usage: Mapping[str, Usage]


@dataclass(frozen=True)
class Weighed:
    """A conversation for a reward model, up to the end of its last message."""

    adapter_id: str
    input: Input


Said = tuple[Verdict, Usage | None]


async def judged(services: Services, tenant_id: str, questions: Sequence[Question]) -> Judged:
    """Ask all at once. Raises SpecInvalid, NotFound, RenderError and what `complete` does."""
    asked = [await in_thread(_ask, services, tenant_id, question) for question in questions]
    calls = [asyncio.create_task(_said(services, each)) for each in asked]
    try:
        answers = await asyncio.gather(*calls)
    finally:
        for call in calls:
            call.cancel()
    usage: defaultdict[str, list[Usage]] = defaultdict(list)
    for question, (_, spent) in zip(questions, answers, strict=True):
        usage[question.model] += [spent] if spent else []
    verdicts = {q.where: verdict for q, (verdict, _) in zip(questions, answers, strict=True)}
    return Judged(Answers(verdicts), {model: together(spent) for model, spent in usage.items()})


def _ask(services: Services, tenant_id: str, question: Question) -> Asked | Weighed:
    """The rendered request. The model is a base of the list or an adapter of the tenant."""
    model = question.model
    is_adapter = model.startswith(ADAPTER_PREFIX) and model not in services.bases.names
    if not is_adapter and model not in services.bases.names:
        text = f"There is no model {model!r}; take a base of GET /models or an adapter's id."
        raise _refused(question, "model", "model_unknown", text)
    if is_adapter:
        adapter = services.store.adapters.get(tenant_id, known("adapter", model))
        if adapter.kind == REWARD:
            return _weigh(services, adapter, question)
    sampling = question.sampling
    body = GenerateBody(
        adapter_id=model if is_adapter else None,
        base_model=None if is_adapter else model,
        messages=question.messages,
        max_tokens=sampling.max_completions_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
    )
    return ask(services, tenant_id, body)


def _weigh(services: Services, adapter: Adapter, question: Question) -> Weighed:
    """The question for a reward model, which reads a conversation and writes nothing."""
    *prompt, answer = question.messages
    if not prompt or answer.role != "assistant":
        text = (
            f"{adapter.id} is a reward model, which scores the assistant's answer to a prompt; let "
            "`input` have the prompt's messages and end with the answer, of role assistant."
        )
        raise _refused(question, "input", "reward_input_invalid", text)
    try:
        (ids,) = inputs_of(services, adapter, prompt, [answer.content])
    except Invalid as error:
        raise _refused(question, "input", "reward_input_invalid", str(error)) from error
    return Weighed(adapter.id, ids)


async def _said(services: Services, asked: Asked | Weighed) -> Said:
    if isinstance(asked, Weighed):
        found = await score(services.http, asked.adapter_id, [asked.input])
        return Verdict(score=found.data[0].score), found.usage
    answer = await complete(services.http, asked.body)
    if not answer.choices:
        raise GeneratorFailed("The inference server's answer has no text.")
    return Verdict(text=answer.choices[0].text), answer.usage


def _refused(question: Question, field: str, code: str, message: str) -> SpecInvalid:
    param = ".".join(filter(None, ("grader", question.where, field)))
    return SpecInvalid([SpecProblem(param, code, message)])


def together(spent: Iterable[Usage]) -> Usage:
    """The sum of several usages."""
    spent = tuple(spent)
    return Usage(
        prompt_tokens=sum(each.prompt_tokens for each in spent),
        completion_tokens=sum(each.completion_tokens for each in spent),
        total_tokens=sum(each.total_tokens for each in spent),
    )
