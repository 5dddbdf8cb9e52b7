"""Graders: scores for what a model wrote, in OpenAI's grader schema where it has one. Torch-free.

No code from outside runs here: templates are looked up, patterns are automata, formulas are
arithmetic, and everything is bounded (limits.py).
"""

from engine.graders.grades import Fault, FaultKind, Grade, GraderProblem, GradingFault
from engine.graders.grading import check, grade, questions
from engine.graders.judge import Answers, Judge, Question, Sampling, Turn, Verdict
from engine.graders.models import asking, with_models
from engine.graders.sample import Sample
from engine.graders.union import Grader

__all__ = [
    "Answers",
    "Fault",
    "FaultKind",
    "Grade",
    "Grader",
    "GraderProblem",
    "GradingFault",
    "Judge",
    "Question",
    "Sample",
    "Sampling",
    "Turn",
    "Verdict",
    "asking",
    "check",
    "grade",
    "questions",
    "with_models",
]
