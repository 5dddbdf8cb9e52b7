"""Statistics and previews of datasets under a tiny tokenizer."""

from pathlib import Path

import pytest

from engine.render import Renderer, RenderError, load_renderer
from engine.rows import Conversation, Message, Preference, Prompt, Row
from engine.tokens import Bucket, preview, statistics
from tests.engine.folders import model_folder, template_text


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("chatml")
    return load_renderer(model_folder(folder, template_text("chatml")))


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def talk(asked: str, answer: str) -> Conversation:
    return Conversation(messages=(user(asked), assistant(answer)))


SHORT = talk("x", "y")
LONG = talk("x", "once upon a time " * 40)
LATE = talk("once upon a time " * 40, "y")


def test_rows_are_counted_by_their_length_before_truncation(chatml: Renderer) -> None:
    lengths = [len(chatml.conversation(row).token_ids) for row in (SHORT, LONG, LATE)]

    found = statistics([SHORT, LONG, LATE, SHORT], chatml, max_length=32)

    assert found.rows == 4
    assert found.tokens == sum(lengths) + lengths[0]
    assert found.longest == max(lengths)
    assert found.max_length == 32
    assert found.truncated == 2
    assert found.empty_mask == 1  # the answer of LATE is past the cut
    assert sum(bucket.rows for bucket in found.histogram) == 4
    assert found.histogram[0] == Bucket(up_to=16, rows=2)


def test_histogram_edges_double_and_hold_lengths_up_to_themselves(chatml: Renderer) -> None:
    found = statistics([SHORT, LONG], chatml, max_length=4096)

    edges = [bucket.up_to for bucket in found.histogram]
    assert edges == [16 * 2**i for i in range(len(edges))]
    assert edges[-2] < found.longest <= edges[-1]


def test_trained_tokens_are_those_with_loss_after_the_cut(chatml: Renderer) -> None:
    cut = chatml.conversation(LONG, max_length=32)

    assert statistics([LONG], chatml, max_length=32).trained_tokens == sum(cut.loss_mask)


def test_no_rows_have_no_histogram(chatml: Renderer) -> None:
    found = statistics([], chatml, max_length=32)

    assert (found.rows, found.tokens, found.longest, found.histogram) == (0, 0, 0, ())


def test_a_preference_with_one_answer_past_the_cut_has_an_empty_mask(chatml: Renderer) -> None:
    row = Preference(
        prompt=LATE.messages[:1], chosen=(assistant("y"),), rejected=(assistant("no"),)
    )

    found = statistics([row], chatml, max_length=32)

    assert (found.rows, found.truncated, found.empty_mask) == (1, 1, 1)


def test_a_prompt_learns_nothing_and_that_is_no_empty_mask(chatml: Renderer) -> None:
    found = statistics([Prompt(prompt=(user("x"),))], chatml, max_length=32)

    assert (found.empty_mask, found.trained_tokens) == (0, 0)


def test_a_preview_shows_the_text_token_by_token_with_what_is_trained(chatml: Renderer) -> None:
    (row,) = preview([talk("What?", "Paris 🐈")], chatml, max_length=64, limit=5)

    assert "".join(token.text for token in row.tokens) == (
        "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nParis 🐈<|im_end|>\n"
    )
    assert "".join(token.text for token in row.tokens if token.trained) == "Paris 🐈<|im_end|>"
    assert (row.row, row.part, row.truncated) == (1, "conversation", False)
    assert any(token.text == "" for token in row.tokens)  # the cat takes several tokens


def test_a_preview_ends_at_its_limit_and_cuts_where_training_does(chatml: Renderer) -> None:
    rows: list[Row] = [SHORT, LONG, SHORT]

    shown = preview(rows, chatml, max_length=20, limit=2)

    assert [(row.row, row.truncated) for row in shown] == [(1, False), (2, True)]
    assert len(shown[1].tokens) == 20


def test_a_preference_is_shown_as_chosen_and_rejected(chatml: Renderer) -> None:
    row = Preference(prompt=(user("x"),), chosen=(assistant("y"),), rejected=(assistant("n"),))

    shown = preview([row], chatml, max_length=64, limit=1)

    assert [part.part for part in shown] == ["chosen", "rejected"]
    trained = ["".join(t.text for t in part.tokens if t.trained) for part in shown]
    assert trained == ["y<|im_end|>", "n<|im_end|>"]


def test_a_row_the_template_refuses_is_named_by_its_number(tmp_path: Path) -> None:
    gemma = load_renderer(model_folder(tmp_path / "base", template_text("gemma")))
    refused = Conversation(messages=(user("a"), user("b"), assistant("c")))

    with pytest.raises(RenderError, match="row 2: the base model's chat template refuses"):
        statistics([SHORT, refused], gemma, max_length=32)
