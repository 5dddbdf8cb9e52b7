"""Judges over HTTP: what graders ask of models goes to the inference server."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.calls import in_thread
from api.completions import complete, score
from api.errors import GeneratorFailed, Invalid
from api.paging import known
from api.rendering import base_named, contract_of, renderer_of
from api.scoring import REWARD, Input, inputs_of
from api.services import Services
from api.spending import spending
from engine.completions import Usage
from engine.graders import Answers, Question, Verdict
from engine.judging import answers_a_prompt, completion_of, how_to_be_scored
from jobs.errors import SpecInvalid, SpecProblem
from jobs.inputs import ADAPTER_PREFIX
from jobs.model import Adapter


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


Asked = dict[str, Any] | Weighed
Said = tuple[Verdict, Usage | None]


async def judged(services: Services, tenant_id: str, questions: Sequence[Question]) -> Judged:
    """Ask all at once. Raises SpecInvalid, NotFound, RenderError and what `complete` does."""
    asked = [await in_thread(_ask, services, tenant_id, question) for question in questions]
    async with spending(services.store, tenant_id, sum(map(_most_tokens, asked))) as tab:
        tab.begun = len(asked) > 1  # where one is refused, others may have been answered
        answers = await _all_said(services, asked)
        tab.settle(together(spent for _, spent in answers if spent is not None))
    usage: defaultdict[str, list[Usage]] = defaultdict(list)
    for question, (_, spent) in zip(questions, answers, strict=True):
        usage[question.model] += [spent] if spent else []
    verdicts = {q.where: verdict for q, (verdict, _) in zip(questions, answers, strict=True)}
    return Judged(Answers(verdicts), {model: together(spent) for model, spent in usage.items()})


async def _all_said(services: Services, asked: Sequence[Asked]) -> list[Said]:
    calls = [asyncio.create_task(_said(services, each)) for each in asked]
    try:
        return await asyncio.gather(*calls)
    finally:
        for call in calls:
            call.cancel()


def _most_tokens(asked: Asked) -> int:
    """What a question may take."""
    if isinstance(asked, Weighed):
        return len(asked.input)
    return len(asked["prompt"]) + int(asked["max_tokens"])


def _ask(services: Services, tenant_id: str, question: Question) -> Asked:
    """The rendered request. The model is a base of the list or an adapter of the tenant."""
    model = question.model
    if model in services.bases.names:
        return completion_of(question, renderer_of(base_named(services.bases, model)))
    if not model.startswith(ADAPTER_PREFIX):
        text = f"There is no model {model!r}; take a base of GET /models or an adapter's id."
        raise _refused(question, "model", "model_unknown", text)
    adapter = services.store.adapters.get(tenant_id, known("adapter", model))
    if adapter.kind == REWARD:
        return _weigh(services, adapter, question)
    base = base_named(services.bases, adapter.base_model)
    return completion_of(question, renderer_of(base, contract_of(adapter)))


def _weigh(services: Services, adapter: Adapter, question: Question) -> Weighed:
    """The question for a reward model, which reads a conversation and writes nothing."""
    if not answers_a_prompt([message.role for message in question.messages]):
        raise _refused(question, "input", "reward_input_invalid", how_to_be_scored(adapter.id))
    *prompt, answer = question.messages
    try:
        (ids,) = inputs_of(services, adapter, prompt, [answer.content])
    except Invalid as error:
        raise _refused(question, "input", "reward_input_invalid", str(error)) from error
    return Weighed(adapter.id, ids)


async def _said(services: Services, asked: Asked) -> Said:
    if isinstance(asked, Weighed):
        found = await score(services.http, asked.adapter_id, [asked.input])
        return Verdict(score=found.data[0].score), found.usage
    answer = await complete(services.http, asked)
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
