"""Judges over HTTP: what graders ask of models goes to the inference server."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from api.calls import in_thread
from api.completions import Completion, Usage, complete
from api.errors import GeneratorFailed
from api.generate import Asked, GenerateBody, ask
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


async def judged(services: Services, tenant_id: str, questions: Sequence[Question]) -> Judged:
    """Ask all at once. Raises SpecInvalid, NotFound, RenderError and what `complete` does."""
    asked = [await in_thread(_ask, services, tenant_id, question) for question in questions]
    calls = [asyncio.create_task(complete(services.http, each.body)) for each in asked]
    try:
        answers = await asyncio.gather(*calls)
    finally:
        for call in calls:
            call.cancel()
    usage: defaultdict[str, list[Usage]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        usage[question.model] += [answer.usage] if answer.usage else []
    verdicts = {q.where: _verdict(answer) for q, answer in zip(questions, answers, strict=True)}
    return Judged(Answers(verdicts), {model: together(spent) for model, spent in usage.items()})


def _ask(services: Services, tenant_id: str, question: Question) -> Asked:
    """The rendered request. The model is a base of the list or an adapter of the tenant."""
    model = question.model
    is_adapter = model.startswith(ADAPTER_PREFIX) and model not in services.bases.names
    if not is_adapter and model not in services.bases.names:
        text = f"There is no model {model!r}; take a base of GET /models or an adapter's id."
        raise _refused(question, "model_unknown", text)
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
    asked = ask(services, tenant_id, body)
    if is_adapter and _is_reward(services.store.adapters.get(tenant_id, model)):
        # The seam: a reward adapter's scalar becomes Verdict(score=...) here.
        text = f"{model} is a reward model, which graders cannot ask yet; take a chat model."
        raise _refused(question, "reward_model_unsupported", text)
    return asked


def _is_reward(adapter: Adapter) -> bool:
    return (adapter.manifest.get("method") or {}).get("type") == "reward"


def _refused(question: Question, code: str, message: str) -> SpecInvalid:
    param = ".".join(filter(None, ("grader", question.where, "model")))
    return SpecInvalid([SpecProblem(param, code, message)])


def _verdict(answer: Completion) -> Verdict:
    if not answer.choices:
        raise GeneratorFailed("The inference server's answer has no text.")
    return Verdict(text=answer.choices[0].text)


def together(spent: Iterable[Usage]) -> Usage:
    """The sum of several usages."""
    spent = tuple(spent)
    return Usage(
        prompt_tokens=sum(each.prompt_tokens for each in spent),
        completion_tokens=sum(each.completion_tokens for each in spent),
        total_tokens=sum(each.total_tokens for each in spent),
    )
