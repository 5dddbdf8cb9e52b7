"""Rows become token ids whose labels are the assistant's tokens and nothing else."""

import pytest

from engine.render import Renderer, load_renderer
from engine.rows import Conversation, Message, Prompt
from engine.train.errors import TrainingFailed
from engine.train.examples import IGNORED, conversations
from engine.train.probing import choose
from tests.bases import make_base


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(make_base(tmp_path_factory.mktemp("base")))


def conversation(question: str, answer: str) -> Conversation:
    return Conversation(
        messages=(
            Message(role="user", content=question),
            Message(role="assistant", content=answer),
        )
    )


def test_labels_are_the_assistants_tokens_and_the_end_of_its_turn(renderer: Renderer) -> None:
    data = conversations([conversation("say", "the number")], renderer, 64)
    (example,) = data.examples
    trained = [label for label in example.labels if label != IGNORED]
    assert renderer.tokenizer.decode(trained, skip_special_tokens=False) == "the number</s>"
    prompt = [i for i, label in zip(example.input_ids, example.labels, strict=True) if label < 0]
    assert renderer.tokenizer.decode(prompt, skip_special_tokens=False).endswith("<|assistant|>")


def test_rows_without_a_trained_token_are_left_out_and_counted(renderer: Renderer) -> None:
    rows = [conversation("say", "it"), conversation("x" * 100, "it")]
    data = conversations(rows, renderer, 32)
    assert (len(data.examples), data.truncated, len(data.left_out)) == (1, 1, 1)
    assert len(data.warnings(32)) == 2


def test_no_trained_token_at_all_is_a_failure_that_says_what_to_do(renderer: Renderer) -> None:
    with pytest.raises(TrainingFailed, match=r"raise `method\.max_length`") as failure:
        conversations([conversation("x" * 100, "it")], renderer, 32)
    assert failure.value.code == "nothing_to_train"


def test_rows_of_another_type_are_refused(renderer: Renderer) -> None:
    with pytest.raises(TrainingFailed, match="conversation rows"):
        conversations([Prompt(prompt=(Message(role="user", content="a"),))], renderer, 32)


def test_probes_are_short_rows_from_their_first_trained_token(renderer: Renderer) -> None:
    rows = [conversation("say" * n, "the number") for n in range(1, 9)]
    data = conversations(rows, renderer, 64)
    probes = choose(data.examples)
    assert len(probes) == 3
    for ids, start in probes:
        example = next(e for e in data.examples if e.input_ids == ids)
        assert example.labels[start] != IGNORED
        assert all(label == IGNORED for label in example.labels[:start])
