"""text_similarity: how much a text is like a reference."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from engine.graders.grades import Grade, GraderProblem, GradingFault, measured
from engine.graders.limits import MAX_COMPARED
from engine.graders.scene import GraderSpec, Scene
from engine.graders.similarity import METRICS, Metric
from engine.graders.templates import Template, problems_of


def _no_cosine(metric: Any) -> Any:
    if metric == "cosine":
        raise ValueError(
            "cosine compares embeddings, and this service has no embedding model; take "
            "fuzzy_match, meteor or rouge_l, or a score_model grader"
        )
    return metric


class TextSimilarity(GraderSpec):
    """Scores 0 to 1 by `evaluation_metric`; passed from `pass_threshold` on, where it is given."""

    type: Literal["text_similarity"] = "text_similarity"
    input: Template
    reference: Template
    evaluation_metric: Annotated[Metric, BeforeValidator(_no_cosine)]
    pass_threshold: float | None = Field(None, ge=0, le=1)

    def problems(self) -> Iterator[GraderProblem]:
        yield from problems_of("input", self.input)
        yield from problems_of("reference", self.reference)

    def grade(self, scene: Scene) -> Grade:
        text, reference = scene.text(self.input), scene.text(self.reference)
        if (longest := max(len(text), len(reference))) > MAX_COMPARED:
            reason = f"{longest:,} characters are above {MAX_COMPARED:,}; compare a part of them."
            raise GradingFault("other_error", reason)
        return measured(METRICS[self.evaluation_metric](text, reference), self.pass_threshold)
