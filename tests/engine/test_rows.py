"""Rows: what each spelling means, and the exact problems of every dataset in the corpus."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.rows import (
    Conversation,
    DatasetFormat,
    DatasetInvalid,
    Message,
    Preference,
    Prompt,
    Rating,
    Report,
    Row,
    RowType,
    RowValidator,
    iter_rows,
)
from engine.rows.model import MAX_MARGIN

CORPUS = Path(__file__).parents[1] / "corpus" / "datasets"
CASES: list[dict[str, Any]] = json.loads((CORPUS / "cases.json").read_text())


def ask(text: str) -> Message:
    return Message(role="user", content=text)


def answer(text: str) -> Message:
    return Message(role="assistant", content=text)


def rows_of(path: Path, *records: Any, row_type: RowType | None = None) -> list[Row]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(iter_rows(path, "jsonl", row_type))


def checked(data: bytes, format: DatasetFormat, row_type: RowType | None = None) -> Report:
    with RowValidator(format, row_type) as validator:
        validator.feed(data)
        return validator.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_every_file_of_the_corpus_gets_exactly_its_answer(case: dict[str, Any]) -> None:
    data = (CORPUS / case["file"]).read_bytes()

    if "accepted_as" in case:
        report = checked(data, case["format"], case.get("row_type"))
        assert (report.row_type, report.rows) == (case["accepted_as"], case["rows"])
        return
    with pytest.raises(DatasetInvalid) as refused:
        checked(data, case["format"], case.get("row_type"))

    problems = [problem.model_dump() for problem in refused.value.problems]
    for found, expected in zip(problems, case["problems"], strict=True):
        if expected["message"].endswith("("):
            found["message"] = found["message"][: len(expected["message"])]
        assert found == expected
    assert refused.value.total == case.get("total", len(problems))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_reading_agrees_with_checking_on_the_corpus(case: dict[str, Any]) -> None:
    rows = iter_rows(CORPUS / case["file"], case["format"], case.get("row_type"))

    if "accepted_as" in case:
        assert len(list(rows)) == case["rows"]
        return
    if case["format"] == "parquet":
        return  # is only read after it has passed
    if "upload at least one row" in case["problems"][0]["message"]:
        assert list(rows) == []
        return
    with pytest.raises(DatasetInvalid) as refused:
        list(rows)
    assert refused.value.problems[0].line == case["problems"][0]["line"]


def test_every_file_of_the_corpus_has_a_case() -> None:
    files = {path.name for path in CORPUS.iterdir()} - {"cases.json", "README.md", ".gitattributes"}

    assert files == {case["file"] for case in CASES}


def test_messages_are_learned_wherever_the_assistant_speaks(tmp_path: Path) -> None:
    messages = [ask("a"), answer("b"), ask("c"), answer("d")]

    (row,) = rows_of(tmp_path / "rows", {"messages": [m.model_dump() for m in messages]})

    assert row == Conversation(messages=tuple(messages), context=0)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "completion": "b"},
        {"prompt": [{"role": "user", "content": "a"}], "completion": "b"},
        {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]},
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a", "input": None, "output": "b"},
    ],
)
def test_prompt_and_completion_are_a_conversation_that_learns_the_completion(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    (row,) = rows_of(tmp_path / "rows", record)

    assert row == Conversation(messages=(ask("a"), answer("b")), context=1)


def test_an_earlier_answer_within_a_prompt_is_context(tmp_path: Path) -> None:
    prompt = [m.model_dump() for m in (ask("a"), answer("b"), ask("c"))]

    (row,) = rows_of(tmp_path / "rows", {"prompt": prompt, "completion": "d"})

    assert isinstance(row, Conversation)
    assert row.context == 3


def test_an_input_follows_its_instruction_after_a_blank_line(tmp_path: Path) -> None:
    record = {"instruction": "Translate.", "input": "chat", "output": "cat"}

    (row,) = rows_of(tmp_path / "rows", record)

    assert row == Conversation(messages=(ask("Translate.\n\nchat"), answer("cat")), context=1)


def test_a_preference_may_be_plain_or_messages(tmp_path: Path) -> None:
    plain = {"prompt": "a", "chosen": "b", "rejected": "c"}
    spelt = {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": "c",
    }

    first, second = rows_of(tmp_path / "rows", plain, spelt)

    expected = Preference(prompt=(ask("a"),), chosen=(answer("b"),), rejected=(answer("c"),))
    assert first == second == expected


def test_a_preference_may_say_how_much_better_its_answer_is(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    margins = [{"margin": 0.5}, {}, {"margin": 3}, {"margin": None}]
    rows = rows_of(tmp_path / "rows", *(row | margin for margin in margins))
    assert [row.margin for row in rows if isinstance(row, Preference)] == [0.5, 0, 3, 0]


@pytest.mark.parametrize(
    ("name", "margins"),
    [("some_margins.csv", [0.5, 0, 3]), ("some_margins.parquet", [1, 0, 0.25, 0])],
)
def test_margins_are_read_from_tables(name: str, margins: list[float]) -> None:
    format: DatasetFormat = "csv" if name.endswith("csv") else "parquet"
    rows = list(iter_rows(CORPUS / name, format))
    assert [row.margin for row in rows if isinstance(row, Preference)] == margins


def test_a_prompt_alone_and_a_rating(tmp_path: Path) -> None:
    (prompt,) = rows_of(tmp_path / "rows", {"prompt": "a"})
    (rating,) = rows_of(tmp_path / "rows", {"prompt": "a", "completion": "b", "label": False})

    assert prompt == Prompt(prompt=(ask("a"),))
    assert rating == Rating(prompt=(ask("a"),), completion=(answer("b"),), label=False)


def test_a_prompt_may_bring_an_item_for_graders(tmp_path: Path) -> None:
    items = [{"reference": "Paris", "n": [1, None]}, {}, {"reference": "Rome"}]
    records = [{"prompt": "Which?", "item": item} for item in items]
    rows = rows_of(tmp_path / "rows", *records, {"prompt": "Which?"})
    assert [row.item for row in rows if isinstance(row, Prompt)] == [*items, {}]


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        (b'{"prompt": "a", "item": {"b": 1, "b": 2}}', "b", "is there twice in one object"),
        (b'{"prompt": "a", "item": {"b": NaN}}', "item", "not finite"),
        (b'{"prompt": "a", "item": "b"}', "item", "object"),
    ],
)
def test_an_item_is_json_that_means_one_thing(line: bytes, field: str, message: str) -> None:
    for before in (b"", b'{"prompt": "a", "item": {}}\n'):
        with pytest.raises(DatasetInvalid, match=rf"{field}: .*{message}"):
            checked(before + line, "jsonl")


def test_reading_stops_at_a_bad_row_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match=r"^line 2, completion: is blank; write the answer$"):
        rows_of(
            tmp_path / "rows", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}
        )


def test_rows_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ask("a").content = "b"  # type: ignore[misc]  # that it is refused is the point
    with pytest.raises(ValueError, match="Extra inputs"):
        Message.model_validate({"role": "user", "content": "a", "name": "b"})


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
said = texts.filter(lambda text: text.strip() != "")
asked = st.builds(Message, role=st.sampled_from(["system", "user", "tool"]), content=texts)
answered = st.builds(answer, said)
prompts = st.lists(asked, min_size=1, max_size=3).map(tuple)
answers = st.lists(answered, min_size=1, max_size=2).map(tuple)
ROWS: dict[str, st.SearchStrategy[Any]] = {
    "conversation": st.builds(
        lambda before, after: Conversation(messages=before + after), prompts, answers
    ),
    "preference": st.builds(
        Preference,
        prompt=prompts,
        chosen=answers,
        rejected=answers,
        margin=st.floats(0, MAX_MARGIN),
    ),
    "prompt": st.builds(
        lambda before, text, item: Prompt(
            prompt=(*before, ask(text)), item_json=json.dumps(item, sort_keys=True)
        ),
        prompts,
        said,
        st.dictionaries(texts, st.one_of(st.none(), st.integers(), texts), max_size=2),
    ),
    "rating": st.builds(Rating, prompt=prompts, completion=answers, label=st.booleans()),
}


def written(row: Row) -> dict[str, Any]:
    """A row as a client writes it."""
    fields = row.model_dump(exclude={"context", "unlearned", "item_json", "tools_json"})
    return fields | {"item": row.item} if isinstance(row, Prompt) else fields


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(get_args(RowType)), st.booleans())
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: RowType, ascii_only: bool
) -> None:
    rows = data.draw(st.lists(ROWS[kind], min_size=1, max_size=4))
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    lines = (json.dumps(written(row), ensure_ascii=ascii_only) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8", newline="\n")

    assert list(iter_rows(path, "jsonl")) == rows
    report = checked(path.read_bytes(), "jsonl")
    assert (report.row_type, report.rows) == (kind, len(rows))
    assert report.duplicates == len(rows) - len(set(rows))
