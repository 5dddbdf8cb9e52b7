"""`luthier score`: what it asks, and how it prints what it is told."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import client
from cli.main import app


class Service:
    """Stands at the network's edge: keeps what is posted, and scores by length."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((path, body))
        scores = [len(answer) - 4.5 for answer in body["completions"]]
        return {"data": [{"index": i, "score": score} for i, score in enumerate(scores)]}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    monkeypatch.setattr(client, "connect", lambda url, key: service)
    return service


def run(*arguments: str, input: str | None = None) -> str:
    answer = CliRunner().invoke(app, ["score", "-a", "ad_1", *arguments], input=input)
    assert answer.exit_code == 0, answer.output
    return answer.output


def test_the_best_answer_comes_first(service: Service) -> None:
    assert run("say 7", "no", "it is 7") == "+2.5000  it is 7\n-2.5000  no\n"
    (asked,) = service.asked
    assert asked == (
        "/score",
        {
            "adapter_id": "ad_1",
            "messages": [{"role": "user", "content": "say 7"}],
            "completions": ["no", "it is 7"],
        },
    )


def test_the_prompt_may_come_from_standard_input_behind_a_system_message(service: Service) -> None:
    run("-", "no", "--system", "be brief", input="say 7")
    assert service.asked[0][1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "say 7"},
    ]


def test_scripts_get_the_services_own_answer(service: Service) -> None:
    said = json.loads(run("say 7", "no", "--json"))
    assert said["data"] == [{"index": 0, "score": -2.5}]
