"""The models that a grader asks: at which of its places they are named, and others instead."""

from collections.abc import Iterator, Mapping

from engine.graders.label_model import LabelModel
from engine.graders.multi import Multi
from engine.graders.score_model import ScoreModel
from engine.graders.union import Grader

Asking = ScoreModel | LabelModel


def asking(grader: Grader | None, where: str = "") -> Iterator[tuple[str, Asking]]:
    """Each part that asks a model, with its place: "" or "graders.a"."""
    if isinstance(grader, Multi):
        for name, part in grader.graders.items():
            yield from asking(part, _inside(where, name))
    elif isinstance(grader, Asking):
        yield where, grader


def with_models(grader: Grader, models: Mapping[str, str], where: str = "") -> Grader:
    """The grader with these models at their places, and all others as they are."""
    if isinstance(grader, Multi):
        parts = {
            name: with_models(part, models, _inside(where, name))
            for name, part in grader.graders.items()
        }
        return grader.model_copy(update={"graders": parts})
    if isinstance(grader, Asking) and where in models:
        return grader.model_copy(update={"model": models[where]})
    return grader


def _inside(where: str, name: str) -> str:
    return f"{where}.graders.{name}".removeprefix(".")
