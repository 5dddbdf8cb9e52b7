"""Rendering against transformers as the oracle, for common templates and kinds of tokenizer."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.render import (
    DEFAULT_TEMPLATE,
    Rendered,
    Renderer,
    RenderError,
    TemplateUnsupported,
    contract_of,
    load_renderer,
)
from engine.rows import Conversation, Message, Preference, Prompt, Rating
from tests.engine.folders import Kind, model_folder, template_text

REPO = Path(__file__).parents[2]
NAMES = ("chatml", "llama3", "gemma", "mistral", "generation_tag", "thinking", "role_tokens")
KINDS: tuple[Kind, ...] = ("byte_level", "byte_level_bos", "metaspace")


def said(*turns: str) -> tuple[Message, ...]:
    """Messages of "user: What?" lines."""
    parts = (turn.split(": ", 1) for turn in turns)
    return tuple(Message.model_validate({"role": r, "content": c}) for r, c in parts)


ONE_TURN = said("user: What is the capital?", "assistant: It is Paris.")
TWO_TURNS = said(
    "system: Be kind.",
    "user: Name three colours.",
    "assistant: Red, green and 🐈 ünï.",
    "user: And a story?",
    "assistant: Once upon a time.",
)
UNANSWERED = said("user: Question", "assistant: Answer", "user: More")


def learned(renderer: Renderer, rendered: Rendered) -> str:
    ids = [i for i, trained in zip(rendered.token_ids, rendered.loss_mask, strict=True) if trained]
    text: str = renderer.tokenizer.decode(ids, skip_special_tokens=False)
    return text


def transformers_says(folder: Path, messages: tuple[Message, ...], **options: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_TEMPLATE
    plain = [message.model_dump() for message in messages]
    return tokenizer.apply_chat_template(plain, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NAMES, None])
def test_text_and_tokens_are_those_of_transformers(
    tmp_path: Path, name: str | None, kind: Kind
) -> None:
    folder = model_folder(tmp_path / "base", name and template_text(name), kind)
    renderer = load_renderer(folder)

    for messages in (ONE_TURN, TWO_TURNS, UNANSWERED):
        options = {"tokenize": False, "add_generation_prompt": True}
        assert renderer.prompt_text(messages) == transformers_says(folder, messages, **options)
        ids = transformers_says(folder, messages, add_generation_prompt=True)["input_ids"]
        assert renderer.prompt_ids(messages) == ids
    rendered = renderer.conversation(ONE_TURN)
    assert list(rendered.token_ids) == transformers_says(folder, ONE_TURN)["input_ids"]


def test_the_model_that_ships_renders_as_transformers_does() -> None:
    folder = REPO / "examples/models/luthier-tiny"
    renderer = load_renderer(folder)

    for messages in (ONE_TURN, TWO_TURNS, UNANSWERED):
        ids = transformers_says(folder, messages, add_generation_prompt=True)["input_ids"]
        assert renderer.prompt_ids(messages) == ids
    rendered = renderer.conversation(TWO_TURNS)
    assert list(rendered.token_ids) == transformers_says(folder, TWO_TURNS)["input_ids"]
    assert learned(renderer, rendered) == "Red, green and 🐈 ünï.<|end|>Once upon a time.<|end|>"


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_bos"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", "Red, green and 🐈 ünï.<|im_end|>Once upon a time.<|im_end|>"),
        ("llama3", "Red, green and 🐈 ünï.<|eot_id|>Once upon a time.<|eot_id|>"),
        ("gemma", "Red, green and 🐈 ünï.<end_of_turn>Once upon a time.<end_of_turn>"),
        ("mistral", " Red, green and 🐈 ünï.</s> Once upon a time.</s>"),
        ("generation_tag", "Red, green and 🐈 ünï.<|im_end|>Once upon a time.<|im_end|>"),
        ("role_tokens", "Red, green and 🐈 ünï.</s>Once upon a time.</s>"),
        (None, "Red, green and 🐈 ünï.</s>Once upon a time.</s>"),
    ],
)
def test_exactly_the_assistants_text_and_its_end_of_turn_are_learned(
    tmp_path: Path, name: str | None, expected: str, kind: Kind
) -> None:
    folder = model_folder(tmp_path / "base", name and template_text(name), kind)
    renderer = load_renderer(folder)

    rendered = renderer.conversation(TWO_TURNS)

    assert learned(renderer, rendered) == expected
    assert not rendered.truncated


def test_a_mask_agrees_with_the_generation_tag_of_transformers(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "base", template_text("generation_tag"))
    options = {"return_dict": True, "return_assistant_tokens_mask": True}

    rendered = load_renderer(folder).conversation(TWO_TURNS)

    theirs = transformers_says(folder, TWO_TURNS, **options)["assistant_masks"]
    assert [int(trained) for trained in rendered.loss_mask] == theirs


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(max_examples=150, deadline=None)
@given(asked=words, answer=words.filter(lambda text: text.strip() != ""))
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_said_the_answer_is_learned_and_the_end_of_turn(
    renderers: dict[Kind, Renderer], kind: Kind, asked: str, answer: str
) -> None:
    renderer = renderers[kind]
    messages = (Message(role="user", content=asked), Message(role="assistant", content=answer))

    rendered = renderer.conversation(messages)

    last = max(i for i, trained in enumerate(rendered.loss_mask) if trained)
    assert rendered.token_ids[last] == renderer.tokenizer.token_to_id("<|im_end|>")
    first = rendered.loss_mask.index(True)
    assert all(rendered.loss_mask[first : last + 1])
    # No token of the prompt alone is learned: at most the last one grew into the answer.
    assert first >= len(renderer.prompt_ids(messages[:1])) - 1
    assert answer.strip() in learned(renderer, rendered) or kind == "metaspace"


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Renderer]:
    root = tmp_path_factory.mktemp("kinds")
    return {k: load_renderer(model_folder(root / k, template_text("chatml"), k)) for k in KINDS}


@pytest.fixture
def chatml(renderers: dict[Kind, Renderer]) -> Renderer:
    return renderers["byte_level"]


def test_truncation_keeps_the_start(chatml: Renderer) -> None:
    whole = chatml.conversation(TWO_TURNS)

    cut = chatml.conversation(TWO_TURNS, max_length=10)

    assert cut.truncated
    assert cut.token_ids == whole.token_ids[:10]
    assert cut.loss_mask == whole.loss_mask[:10]
    exact = chatml.conversation(TWO_TURNS, max_length=len(whole.token_ids))
    assert exact == whole


def test_messages_given_as_prompt_are_not_learned(chatml: Renderer) -> None:
    row = Conversation(messages=TWO_TURNS, context=4)

    rendered = chatml.conversation(row)

    assert learned(chatml, rendered) == "Once upon a time.<|im_end|>"


def test_both_answers_of_a_preference_are_sequences_over_the_same_prompt(chatml: Renderer) -> None:
    row = Preference(
        prompt=TWO_TURNS[:4], chosen=said("assistant: Yes."), rejected=said("assistant: No.")
    )

    chosen, rejected = chatml.sequences(row)

    prompt = chatml.prompt_ids(row.prompt)
    assert list(chosen.token_ids[: len(prompt)]) == prompt
    assert list(rejected.token_ids[: len(prompt)]) == prompt
    assert learned(chatml, chosen) == "Yes.<|im_end|>"
    assert learned(chatml, rejected) == "No.<|im_end|>"


def test_a_rating_learns_its_completion_and_a_prompt_learns_nothing(chatml: Renderer) -> None:
    rating = Rating(prompt=ONE_TURN[:1], completion=said("assistant: Fine."), label=False)
    (rated,) = chatml.sequences(rating)
    (asked,) = chatml.sequences(Prompt(prompt=ONE_TURN[:1]), max_length=4)

    assert learned(chatml, rated) == "Fine.<|im_end|>"
    assert list(asked.token_ids) == chatml.prompt_ids(ONE_TURN[:1])[:4]
    assert not any(asked.loss_mask)
    assert asked.truncated


def test_a_template_that_rewrites_earlier_turns_is_refused_by_name_of_the_message(
    tmp_path: Path,
) -> None:
    renderer = load_renderer(model_folder(tmp_path / "base", template_text("thinking")))

    with pytest.raises(TemplateUnsupported, match="does not write message 3 the same way"):
        renderer.conversation(TWO_TURNS)


def test_under_such_a_template_each_turn_is_a_sequence_of_its_own(tmp_path: Path) -> None:
    renderer = load_renderer(model_folder(tmp_path / "base", template_text("thinking")))

    sequences = renderer.sequences(Conversation(messages=TWO_TURNS))

    assert [learned(renderer, sequence) for sequence in sequences] == [
        "<think>\n\n</think>\n\nRed, green and 🐈 ünï.<|im_end|>",
        "<think>\n\n</think>\n\nOnce upon a time.<|im_end|>",
    ]
    for sequence, prompt in zip(sequences, (TWO_TURNS[:2], TWO_TURNS[:4]), strict=True):
        ids = renderer.prompt_ids(prompt)
        assert list(sequence.token_ids[: len(ids)]) == ids


def test_a_template_whose_prompt_is_no_beginning_of_the_turn_is_refused(tmp_path: Path) -> None:
    forced = template_text("chatml").replace("assistant\\n", "assistant\\n<think>\\n")
    renderer = load_renderer(model_folder(tmp_path / "base", forced))

    with pytest.raises(TemplateUnsupported, match="prompt and completion"):
        renderer.sequences(Conversation(messages=ONE_TURN))


def test_a_conversation_the_template_refuses_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    renderer = load_renderer(model_folder(tmp_path / "base", template_text("gemma")))

    with pytest.raises(RenderError, match=r"roles: user, user\): Conversation roles must alt"):
        renderer.conversation(said("user: a", "user: b"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "not valid Jinja"),
        ("{{ messages[9].content.upper() }}", "refuses this conversation"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ namespace(__init__=1) }}", "cannot hold '__init__'"),
        ("{% for i in range(10**9) %}{% endfor %}", "range"),
    ],
)
def test_a_template_that_is_broken_or_reaches_out_is_an_error(
    tmp_path: Path, template: str, message: str
) -> None:
    folder = model_folder(tmp_path / "base", template)

    with pytest.raises(RenderError, match=message):
        load_renderer(folder).conversation(ONE_TURN)


def test_raw_text_begins_with_bos_where_the_tokenizer_wants_one(
    renderers: dict[Kind, Renderer],
) -> None:
    plain, begins = renderers["byte_level"], renderers["byte_level_bos"]

    bos = begins.tokenizer.token_to_id("<s>")
    raw = plain.prompt_ids("Once upon")

    assert begins.prompt_ids("Once upon") == [bos, *raw]
    assert begins.prompt_ids("<s>Once upon") == [bos, *raw]
    assert begins.prompt_ids("") == [bos]
    assert plain.prompt_ids("") == []


def test_a_tokenizers_own_padding_and_truncation_do_not_reach_training(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "base", template_text("chatml"))
    before = load_renderer(folder).conversation(TWO_TURNS)
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    state["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    path.write_text(json.dumps(state))

    assert load_renderer(folder).conversation(TWO_TURNS) == before


def test_the_date_of_a_template_is_the_same_in_all_parts_of_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = load_renderer(model_folder(tmp_path / "base", template_text("llama3")))
    days = iter(datetime(2026, 1, day) for day in range(1, 9))

    class Clock:
        @staticmethod
        def now() -> datetime:
            return next(days)

    monkeypatch.setattr("engine.render.datetime", Clock)

    assert "Today Date: 01 Jan 2026" in renderer.prompt_text(ONE_TURN)
    assert any(renderer.conversation(TWO_TURNS).loss_mask)


def test_an_adapters_contract_is_used_instead_of_the_folders(tmp_path: Path) -> None:
    trained = contract_of(model_folder(tmp_path / "base", template_text("chatml")))
    (tmp_path / "base" / "chat_template.jinja").write_text("another one")

    renderer = load_renderer(tmp_path / "base", trained)

    assert renderer.prompt_text(ONE_TURN[:1]).endswith("<|im_start|>assistant\n")
    assert type(trained).model_validate_json(trained.model_dump_json()) == trained


def test_another_tokenizer_than_the_contracts_is_refused(tmp_path: Path) -> None:
    trained = contract_of(model_folder(tmp_path / "base", template_text("chatml")))
    other = model_folder(tmp_path / "other", template_text("chatml"), "metaspace")

    with pytest.raises(RenderError, match="not the one this adapter was trained with"):
        load_renderer(other, trained)
