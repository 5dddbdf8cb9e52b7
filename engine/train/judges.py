"""Who answers a grader's questions while a job trains: reward adapters here, judges elsewhere."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from engine.bases import context_length
from engine.contract import RenderContract
from engine.graders import Answers, Grader, GradingFault, Question, Verdict, asking
from engine.infer.head import scored_part
from engine.judging import Unscorable, completion_of, scored_ids
from engine.plan import GraderModel, TrainPlan
from engine.render import Renderer, load_renderer
from engine.train.asking import Generator, Said
from engine.train.link import Link

# Token ids of conversations, each up to where its score is read, to their scores.
Reader = Callable[[Sequence[Sequence[int]]], list[float]]
# A reward adapter's folder, and a name for it on the base, to what reads its scores.
Loader = Callable[[Path, str], Reader]
# The questions about each answer of a step, to who has answered them.
Judging = Callable[[Sequence[Sequence[Question]]], list[Answers]]

NOBODY = Answers({})


def judging(plan: TrainPlan, grader: Grader, load: Loader, link: Link) -> Judging:
    """Who answers this grader's questions. Raises TrainingFailed for an unusable reward adapter."""
    if not any(asking(grader)):
        return lambda asked: [NOBODY] * len(asked)
    readers = {
        name: load(model.folder, f"grader_{number}")
        for number, (name, model) in enumerate(plan.grader_models.items())
        if model.folder is not None
    }
    generator = Generator(plan.generator_url, plan.generator_key, plan.judge_patience_s, link)
    return Judges(plan.grader_models, readers, generator)


class Judges:
    """Asks the same question once a step, however many answers of the policy lead to it."""

    def __init__(
        self, models: dict[str, GraderModel], readers: dict[str, Reader], generator: Generator
    ) -> None:
        self._models, self._readers, self._generator = models, readers, generator

    def __call__(self, asked: Sequence[Sequence[Question]]) -> list[Answers]:
        """Raises StopRequested, TrainingFailed and RenderError."""
        questions = {_key(question): question for each in asked for question in each}
        here = {key: each for key, each in questions.items() if each.model in self._readers}
        there = {key: each for key, each in questions.items() if key not in here}
        said = {**self._weighed(here), **self._judged(there)}
        return [Answers({q.where: said[_key(q)] for q in each}) for each in asked]

    def _judged(self, asked: dict[Question, Question]) -> dict[Question, Said]:
        if not asked:
            return {}
        bodies = [completion_of(question, self._renderer(question)) for question in asked.values()]
        return dict(zip(asked, self._generator.ask(bodies), strict=True))

    def _weighed(self, asked: dict[Question, Question]) -> dict[Question, Said]:
        said: dict[Question, Said] = {}
        read: dict[str, dict[Question, Sequence[int]]] = {}
        for key, question in asked.items():
            renderer = self._renderer(question)
            try:
                ids = scored_ids(question, renderer)
            except Unscorable as error:
                said[key] = GradingFault("other_error", str(error))
                continue
            longest = _longest(self._models[question.model].base_path)
            if longest is not None and len(ids) > longest:
                text = (
                    f"The prompt and its answer have {len(ids)} tokens and the context of "
                    f"{question.model} holds {longest}; shorten `input`."
                )
                said[key] = GradingFault("model_grader_server_error", text)
                continue
            part = scored_part(ids, renderer.contract.pad_token_id)
            read.setdefault(question.model, {})[key] = part
        for name, inputs in read.items():
            scores = self._readers[name](list(inputs.values()))
            said |= {key: Verdict(score=score) for key, score in zip(inputs, scores, strict=True)}
        return said

    def _renderer(self, question: Question) -> Renderer:
        model = self._models[question.model]
        contract = None if model.contract is None else RenderContract.model_validate(model.contract)
        return _load(model.base_path, None if contract is None else contract.model_dump_json())


def _key(question: Question) -> Question:
    """The question without the place that asks it."""
    return question.model_copy(update={"where": ""})


@lru_cache(maxsize=8)
def _longest(path: Path) -> int | None:
    return context_length(path)


@lru_cache(maxsize=8)
def _load(path: Path, contract: str | None) -> Renderer:
    given = None if contract is None else RenderContract.model_validate_json(contract)
    return load_renderer(path, given)
