"""EleutherAI's lm-evaluation-harness, offline, comparing a base with its adapter."""

import json

import pytest

from tests.v1.clients import HERE, needs, program, run
from tests.v1.house import BASE, REPO, House

pytestmark = needs("lm_eval")

Results = dict[str, dict[str, dict[str, float]]]


@pytest.fixture(scope="module")
def results(house: House, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """By kind of model and task: what the base and the adapter reach."""
    program("lm_eval")
    printed = run(
        program("python"),
        "evaluate.py",
        REPO / "examples" / "models" / BASE,
        BASE,
        house.adapter_id,
        cwd=HERE / "lm_eval",
        LUTHIER_V1=house.v1,
        OPENAI_API_KEY=house.key,
        HF_HOME=str(tmp_path_factory.mktemp("hf")),
    )
    found: Results = json.loads(printed.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("local-completions", "tickets_chosen"),  # log-likelihoods, by echo
        ("local-completions", "tickets_written"),
        ("local-chat-completions", "tickets_written"),
    ],
)
def test_the_adapter_is_better_than_its_base(
    results: Results, house: House, kind: str, task: str
) -> None:
    base, adapter = results[kind][BASE][task], results[kind][house.adapter_id][task]
    assert adapter >= base + 0.3, results


def test_both_routes_write_the_same(results: Results, house: House) -> None:
    by_prompt, by_chat = results["local-completions"], results["local-chat-completions"]
    for model in (BASE, house.adapter_id):
        assert by_prompt[model]["tickets_written"] == by_chat[model]["tickets_written"]
