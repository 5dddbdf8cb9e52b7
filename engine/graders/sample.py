"""A model's output under its grader, as text and as JSON."""

import json
from functools import cached_property
from typing import Any

from pydantic_core import from_json

from engine.frozen import Spec
from engine.graders.grades import GradingFault


class Sample(Spec):
    """What a model wrote."""

    output_text: str

    @cached_property
    def output_json(self) -> Any:
        """The text as JSON. Raises GradingFault (sample_parse_error) when it is none."""
        try:
            return strict_json(self.output_text)
        except ValueError as error:
            text = f"The sample is not JSON ({error}), so {{{{ sample.output_json }}}} is nothing."
            raise GradingFault("sample_parse_error", text) from None


def strict_json(text: str) -> Any:
    """JSON that every parser agrees on: finite numbers, no lone surrogates. Raises ValueError."""
    try:
        value = from_json(text.encode(), allow_inf_nan=False)
        json.dumps(value, allow_nan=False)  # 1e999 reads as infinity
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value
