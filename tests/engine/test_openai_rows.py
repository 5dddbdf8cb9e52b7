"""OpenAI's formats, from a file's line to the labels that are trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.examples import IGNORED, read_conversation, read_preference, read_prompt
from engine.render import Renderer, RenderError, load_renderer
from engine.rows import (
    OPENAI,
    Conversation,
    DatasetInvalid,
    FunctionCall,
    Message,
    Preference,
    Prompt,
    Report,
    RichMessage,
    RowType,
    RowValidator,
    ToolCall,
    iter_rows,
)
from engine.train.examples import conversations
from tests.engine.folders import model_folder, template_text

USER = {"role": "user", "content": "What is it?"}
ANSWER = {"role": "assistant", "content": "It is Paris."}
OTHER = {"role": "assistant", "content": "A story."}
FUNCTION = {
    "name": "find",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}
TOOL = {"type": "function", "function": FUNCTION}
SAID = {"name": "find", "arguments": '{"place": "Seine"}'}
CALL = {"id": "call_1", "type": "function", "function": SAID}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOLD = {"role": "tool", "tool_call_id": "call_1", "content": "a river"}
WITH_TOOLS = {"messages": [USER, CALLING, TOLD, ANSWER], "tools": [TOOL]}


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def rows_of(tmp_path: Path, *records: Any, row_type: RowType | None = None) -> list[Any]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(*records))
    return list(iter_rows(path, "jsonl", row_type))


def feed(validator: RowValidator, data: bytes) -> Report:
    validator.feed(data)
    return validator.close()


def checked(*records: Any) -> Report:
    """As POST /v1/files checks."""
    with RowValidator("jsonl", None, OPENAI) as validator:
        return feed(validator, lines(*records))


def refused(*records: Any) -> list[tuple[int, str | None, str]]:
    with pytest.raises(DatasetInvalid) as invalid:
        checked(*records)
    return [(p.line, p.field, p.message) for p in invalid.value.problems]


@pytest.fixture
def renderer(tmp_path: Path) -> Renderer:
    """Of a base whose template writes tools, calls and names."""
    return load_renderer(model_folder(tmp_path / "tools", template_text("tools")))


@pytest.fixture
def plain(tmp_path: Path) -> Renderer:
    """Of a base whose template knows roles and texts."""
    return load_renderer(model_folder(tmp_path / "plain", template_text("chatml")))


def trained(renderer: Renderer, row: Conversation) -> list[str]:
    """What each example has labels for, as text; the other labels say that they are ignored."""
    found = []
    for example in read_conversation(row, renderer, 4096).examples:
        kept = [label for label in example.labels if label != IGNORED]
        pairs = zip(example.input_ids, example.labels, strict=True)
        assert all(label in (token, IGNORED) for token, label in pairs)
        found.append(renderer.tokenizer.decode(kept, skip_special_tokens=False))
    return found


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((None, None), "It is Paris.<|im_end|>A story.<|im_end|>"),
        ((1, 1), "It is Paris.<|im_end|>A story.<|im_end|>"),
        ((0, None), "A story.<|im_end|>"),
        ((0, 1), "A story.<|im_end|>"),
        ((1, 0), "It is Paris.<|im_end|>"),
    ],
)
def test_a_weight_decides_whether_a_message_is_learned(
    tmp_path: Path, plain: Renderer, weights: tuple[int | None, ...], expected: str
) -> None:
    answers = [
        answer if weight is None else answer | {"weight": weight}
        for answer, weight in zip((ANSWER, OTHER), weights, strict=True)
    ]
    (row,) = rows_of(tmp_path, {"messages": [USER, answers[0], USER, answers[1]]})
    assert trained(plain, row) == [expected]
    (example,) = conversations([row], plain, 4096).examples
    assert example == read_conversation(row, plain, 4096).examples[0]


def test_a_weight_changes_the_labels_and_not_the_tokens(tmp_path: Path, plain: Renderer) -> None:
    both, one = rows_of(
        tmp_path,
        {"messages": [USER, ANSWER, USER, OTHER]},
        {"messages": [USER, ANSWER | {"weight": 0}, USER, OTHER]},
    )
    (whole,), (masked,) = (read_conversation(row, plain, 4096).examples for row in (both, one))
    assert whole.input_ids == masked.input_ids
    first = [i for i, label in enumerate(whole.labels) if label != masked.labels[i]]
    said = plain.tokenizer.decode([whole.input_ids[i] for i in first], skip_special_tokens=False)
    assert said == "It is Paris.<|im_end|>"
    assert {masked.labels[i] for i in first} == {IGNORED}


def test_turn_by_turn_a_message_without_weight_is_no_example(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "base", template_text("thinking"))
    renderer = load_renderer(folder)
    messages = [USER, ANSWER | {"content": "<think>a</think>It is Paris."}, USER, OTHER]
    whole, last = rows_of(
        tmp_path,
        {"messages": messages},
        {"messages": [USER, messages[1] | {"weight": 0}, USER, OTHER]},
    )
    assert len(trained(renderer, whole)) == 2
    assert trained(renderer, last) == trained(renderer, whole)[1:]


def test_tools_and_calls_are_rendered_as_transformers_does(
    tmp_path: Path, renderer: Renderer
) -> None:
    from transformers import AutoTokenizer

    (row,) = rows_of(tmp_path, WITH_TOOLS)
    call = {"id": "call_1", "type": "function"}
    call["function"] = {"name": "find", "arguments": {"place": "Seine"}}  # type: ignore[assignment]
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    expected = AutoTokenizer.from_pretrained(tmp_path / "tools").apply_chat_template(
        [USER, calling, TOLD, ANSWER], tools=[TOOL], tokenize=True
    )["input_ids"]

    (rendered,) = renderer.sequences(row)

    assert list(rendered.token_ids) == expected
    (learned,) = trained(renderer, row)
    called = '<call>{"name": "find", "arguments": {"place": "Seine"}}</call><|im_end|>'
    assert learned == f"{called}It is Paris.<|im_end|>"


def test_functions_are_tools_by_their_older_name(tmp_path: Path, renderer: Renderer) -> None:
    older = {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "function_call": SAID},
            {"role": "function", "name": "find", "content": "a river"},
            ANSWER,
        ],
        "functions": [FUNCTION],
    }
    new, old = rows_of(tmp_path, WITH_TOOLS, older)
    assert old.tools == new.tools == [TOOL]
    function = FunctionCall.model_validate(SAID)
    assert old.messages[1].tool_calls == (ToolCall(id="call_1", function=function),)
    assert old.messages[2] == RichMessage(
        role="tool", content="a river", name="find", tool_call_id="call_1"
    )
    assert trained(renderer, old) == trained(renderer, new)


def test_parts_of_text_and_empty_fields_are_plain_messages(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "Paris."}]
    empty = dict.fromkeys(("refusal", "audio", "tool_calls", "function_call", "name"))
    (row,) = rows_of(
        tmp_path,
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                USER,
                {"role": "assistant", "content": parts} | empty,
            ]
        },
    )
    assert row == Conversation(
        messages=(
            Message(role="system", content="Be brief."),
            Message(role="user", content="What is it?"),
            Message(role="assistant", content="It is Paris."),
        )
    )


def test_a_preference_has_its_prompt_and_both_outputs(tmp_path: Path, renderer: Renderer) -> None:
    (row,) = rows_of(
        tmp_path,
        {
            "input": {"messages": [USER], "tools": [TOOL], "parallel_tool_calls": True},
            "preferred_output": [CALLING],
            "non_preferred_output": [OTHER],
        },
    )
    assert isinstance(row, Preference)
    (pair,) = read_preference(row, renderer, 4096).examples
    for answer, ends in ((pair.chosen, "</call><|im_end|>"), (pair.rejected, "story.<|im_end|>")):
        text = renderer.tokenizer.decode(answer.input_ids, skip_special_tokens=False)
        assert '"name": "find", "parameters"' in text
        assert text.endswith(ends)


def test_a_prompt_keeps_what_graders_compare_with(tmp_path: Path, renderer: Renderer) -> None:
    item = {"answer": "Paris", "of": {"country": "France"}, "turns": 1, "row": 2, "faults": 3}
    (row,) = rows_of(tmp_path, {"messages": [USER], "tools": [TOOL]} | item)
    assert isinstance(row, Prompt)
    assert row.item == item
    (asked,) = read_prompt(row, renderer, 4096).examples
    text = renderer.tokenizer.decode(asked.input_ids, skip_special_tokens=False)
    assert '"name": "find"' in text
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"messages": [USER, ANSWER], "tools": [TOOL]}, "definitions of tools"),
        ({"messages": [USER, CALLING, TOLD, ANSWER]}, "calls of tools"),
        ({"messages": [USER | {"name": "Ann"}, ANSWER]}, "names of speakers"),
    ],
)
def test_what_a_template_would_leave_out_is_refused_with_the_row(
    tmp_path: Path, renderer: Renderer, plain: Renderer, record: Any, what: str
) -> None:
    good, row = rows_of(tmp_path, {"messages": [USER, ANSWER]}, record)
    assert trained(renderer, row)
    with pytest.raises(RenderError, match=f"^Row 2: .* does not write {what}; leave them out"):
        conversations([good, row], plain, 4096)


def test_a_prompt_with_tools_is_held_to_the_same(plain: Renderer) -> None:
    messages = (Message(role="user", content="What is it?"),)
    with pytest.raises(RenderError, match="definitions of tools"):
        plain.prompt_ids(messages, [TOOL])
    assert plain.prompt_ids(messages, []) == plain.prompt_ids(messages)


def test_ten_examples_are_the_least_that_openai_takes() -> None:
    row = {"messages": [USER, ANSWER]}
    assert checked(*[row] * 10).rows == 10
    assert refused(*[row] * 9) == [(9, None, "is the last of 9 examples; at least 10 are needed")]


def test_a_chat_ends_with_the_assistant() -> None:
    good, bad = {"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER, USER]}
    said = "is user; the last message must be from the assistant"
    assert refused(*[good] * 9, bad, good) == [(10, "messages[2].role", said)]
    rich = {"messages": [USER, ANSWER | {"weight": 1}, USER]}
    assert refused(*[good] * 9, rich, good) == [(10, "messages[2].role", said)]


def test_a_file_of_messages_to_answer_is_one_of_prompts() -> None:
    assert checked(*[{"messages": [USER]}] * 10).row_type == "prompt"
    assert checked(*[{"messages": [USER], "answer": n} for n in range(10)]).row_type == "prompt"
    answered = "is assistant; the last message of a prompt must be from the user"
    rows = [{"messages": [USER]}] * 10
    assert refused(*rows, {"messages": [USER, ANSWER]}) == [(11, "messages[1].role", answered)]


def test_equal_rows_are_duplicates_however_they_are_spelt() -> None:
    rows = [
        WITH_TOOLS,
        WITH_TOOLS | {"parallel_tool_calls": True},
        {"messages": [USER, ANSWER | {"weight": 1}]},
        {"messages": [USER, ANSWER | {"name": None}]},
    ]
    assert checked(*rows, *([{"messages": [USER, OTHER | {"weight": 1}]}] * 8)).duplicates == 9


@pytest.mark.parametrize(
    ("line", "field", "says"),
    [
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", '
         '"weight": 1, "weight": 0}]}', "weight", "is there twice in one object"),
        ('{"messages": [{"role": "user", "content": "a", "name": "A"}, {"role": "assistant", '
         '"content": "b\\u0000"}]}', "messages[1].content", "has a NUL character; remove it"),
        ('{"messages": [{"role": "user", "content": "a"}], "answer": 1e999}', "answer",
         "has a number that is not finite; JSON has none"),
    ],
)  # fmt: skip
def test_what_parsers_would_read_differently_is_refused(line: str, field: str, says: str) -> None:
    with pytest.raises(DatasetInvalid) as invalid, RowValidator("jsonl") as validator:
        feed(validator, f"{line}\n".encode() * 2)
    assert {(p.field, p.message) for p in invalid.value.problems} == {(field, says)}
