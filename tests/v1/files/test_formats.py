"""OpenAI's formats of fine-tuning files, through the front door and on to what is learned."""

from typing import Any

import httpx
import openai
import pytest

from tests.v1.files.conftest import Filing
from tests.v1.files.making import ANSWER, CALL, TOOL, USER, chat, jsonl

WEIGHTED = {"messages": [USER, ANSWER | {"weight": 0}, USER, {**ANSWER, "content": "it is 8"}]}
PREFERRED = {
    "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [ANSWER],
    "non_preferred_output": [{"role": "assistant", "content": "no"}],
}
REFERRED = {"messages": [USER], "reference_answer": "7", "of": {"level": 1}}
TOOLED = {
    "messages": [
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ANSWER,
    ],
    "tools": [TOOL],
    "parallel_tool_calls": False,
}


def upload(client: openai.OpenAI, *rows: Any) -> str:
    return client.files.create(file=("rows.jsonl", jsonl(*rows)), purpose="fine-tune").id


def get(filing: Filing, client: openai.OpenAI, path: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {client.api_key}"}
    return httpx.get(f"{filing.url}{path}", headers=headers, timeout=60)


@pytest.mark.parametrize(
    ("row", "row_type"),
    [
        (chat(), "conversation"),
        (WEIGHTED, "conversation"),
        (TOOLED, "conversation"),
        (PREFERRED, "preference"),
        (REFERRED, "prompt"),
        ({"messages": [USER]}, "prompt"),
        ({"prompt": "say it", "completion": "7"}, "conversation"),
        ({"prompt": "say it", "completion": "7", "label": True}, "rating"),
    ],
)
def test_each_format_is_rows_of_one_type(
    filing: Filing, client: openai.OpenAI, row: dict[str, Any], row_type: str
) -> None:
    file_id = upload(client, *[row] * 10)
    found = get(filing, client, f"/datasets/{file_id}").json()
    assert (found["row_type"], found["rows"], found["duplicates"]) == (row_type, 10, 9)


def test_what_has_no_weight_in_it_is_not_learned(filing: Filing, client: openai.OpenAI) -> None:
    file_id = upload(client, *[WEIGHTED] * 10)
    shown = get(filing, client, f"/datasets/{file_id}/preview?limit=1").json()["data"][0]
    learned = "".join(token["text"] for token in shown["tokens"] if token["trained"])
    assert learned == "it is 8<|end|>"


def test_rows_that_a_base_cannot_be_shown_are_refused_by_their_number(
    filing: Filing, client: openai.OpenAI
) -> None:
    """This base's template writes roles and texts alone."""
    file_id = upload(client, *[chat()] * 9, TOOLED)
    for path in ("statistics", "preview?limit=10"):
        answer = get(filing, client, f"/datasets/{file_id}/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "render_invalid")
        assert (
            "row 10: the base model's chat template does not write definitions of tools"
            in (answer.json()["error"]["message"])
        )


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([chat()] * 9, (9, None, "is the last of 9 examples; at least 10 are needed")),
        ([chat()] * 10 + [{"messages": [USER, ANSWER, USER]}],
         (11, "messages[2].role", "is user; the last message must be from the assistant")),
        ([chat()] * 10 + [REFERRED],
         (11, None, "is a prompt row in a dataset of conversation rows; ")),
        ([PREFERRED] * 10 + [PREFERRED | {"preferred_output": [USER]}],
         (11, "preferred_output", "must begin and end with an assistant message")),
        ([REFERRED] * 10 + [{"messages": [USER, ANSWER], "reference_answer": "7"}],
         (11, "messages[1].role", "is assistant; the last message of a prompt must be")),
        ([chat()] * 10 + [{"messages": [USER, ANSWER | {"weight": 0.5}]}],
         (11, "messages[1].weight", "must be 0 or 1")),
    ],
)  # fmt: skip
def test_a_limit_of_openai_is_named_with_line_and_field(
    filing: Filing, client: openai.OpenAI, rows: list[Any], problem: tuple[int, str | None, str]
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        upload(client, *rows)
    body: Any = refused.value.body
    (found,) = body["problems"]
    assert (found["line"], found["field"]) == problem[:2]
    assert found["message"].startswith(problem[2])
    assert refused.value.param == problem[1]
    assert filing.stored() == []


def test_the_native_api_takes_the_same_rows_and_asks_for_no_ten(
    filing: Filing, client: openai.OpenAI
) -> None:
    headers = {"authorization": f"Bearer {client.api_key}"}
    for row in (chat(), WEIGHTED, TOOLED, PREFERRED, REFERRED):
        url = f"{filing.url}/datasets?format=jsonl"
        answer = httpx.post(url, headers=headers, content=jsonl(row), timeout=60)
        assert (answer.status_code, answer.json()["rows"]) == (201, 1)


def test_a_file_above_the_servers_limit_is_refused(make_filing: Any) -> None:
    client = make_filing(max_upload_bytes=4096).client()
    with pytest.raises(openai.APIStatusError, match="4,096 bytes") as refused:
        upload(client, *[chat()] * 200)
    assert (refused.value.status_code, refused.value.code) == (413, "body_too_large")
