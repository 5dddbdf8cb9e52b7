"""/v1/fine_tuning/alpha/graders by OpenAI's own SDK."""

from typing import Any

import openai
import pytest

CHECK: Any = {
    "type": "string_check",
    "name": "right",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
LIKE: Any = {
    "type": "text_similarity",
    "name": "like",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}
BOTH: Any = {
    "type": "multi",
    "name": "both",
    "graders": {"right": CHECK, "like": LIKE},
    "calculate_output": "0.5 * right + 0.5 * like",
}


def test_a_grader_is_validated_and_run(sdk: openai.OpenAI) -> None:
    graders = sdk.fine_tuning.alpha.graders
    valid = graders.validate(grader=BOTH)
    assert valid.grader is not None
    assert valid.grader.type == "multi"
    found = graders.run(grader=BOTH, model_sample="Paris", item={"answer": "Paris"})
    assert (found.reward, found.sub_rewards) == (1.0, {"right": 1.0, "like": 1.0})
    assert (found.metadata.type, found.metadata.name) == ("multi", "both")
    assert found.metadata.token_usage is None
    errors = found.metadata.errors.model_dump()
    assert not [name for name, said in errors.items() if said is True]
    assert graders.run(grader=CHECK, model_sample="x", item={"answer": "y"}).reward == 0.0


def test_what_keeps_a_sample_from_being_graded_is_said_by_openai_s_names(
    sdk: openai.OpenAI,
) -> None:
    found = sdk.fine_tuning.alpha.graders.run(grader=CHECK, model_sample="x", item={})
    assert found.metadata.errors.invalid_variable_error


def test_code_is_refused_with_a_reason(sdk: openai.OpenAI) -> None:
    python: Any = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}
    with pytest.raises(openai.UnprocessableEntityError, match="no code from outside"):
        sdk.fine_tuning.alpha.graders.validate(grader=python)


@pytest.mark.anyio
async def test_the_async_client_does_it_too(async_sdk: openai.AsyncOpenAI) -> None:
    graders = async_sdk.fine_tuning.alpha.graders
    assert (await graders.validate(grader=CHECK)).grader is not None
    run = await graders.run(grader=CHECK, model_sample="a", item={"answer": "a"})
    assert run.reward == 1.0
