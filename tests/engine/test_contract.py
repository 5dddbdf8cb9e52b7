"""What a model folder implies about rendering, in each of the ways folders say it."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.render import DEFAULT_TEMPLATE, RenderError, contract_of
from tests.engine.folders import model_folder, template_text


def ids(folder: Path, *tokens: str) -> tuple[int, ...]:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return tuple(sorted(vocabulary[token] for token in tokens))


def test_a_folder_without_template_gets_the_plain_one(tmp_path: Path) -> None:
    contract = contract_of(model_folder(tmp_path / "base", None))

    assert contract.chat_template == DEFAULT_TEMPLATE
    assert contract.default_template
    assert (contract.bos_token, contract.eos_token) == ("<s>", "</s>")


def test_the_template_file_goes_before_the_one_in_the_configuration(tmp_path: Path) -> None:
    template = template_text("chatml")
    folder = model_folder(tmp_path / "base", template, chat_template="the other")

    assert contract_of(folder).chat_template == template
    assert not contract_of(folder).default_template


def test_of_several_named_templates_the_default_is_used(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]

    assert (
        contract_of(model_folder(tmp_path / "base", None, chat_template=named)).chat_template == "d"
    )


def test_the_token_that_ends_a_turn_stops_generation_too(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "base", template_text("chatml"))

    contract = contract_of(folder)

    assert contract.stop_token_ids == ids(folder, "</s>", "<|im_end|>")
    assert (contract.eos_token_id,) == ids(folder, "</s>")


def test_end_of_sequence_ids_of_the_generation_configuration_stop_generation(
    tmp_path: Path,
) -> None:
    folder = model_folder(tmp_path / "base", template_text("mistral"))
    eot = ids(folder, "<|eot_id|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [*eot]}))

    assert contract_of(folder).stop_token_ids == ids(folder, "</s>", "<|eot_id|>")


def test_special_tokens_may_be_objects_or_stand_in_the_older_map(tmp_path: Path) -> None:
    written: dict[str, Any] = {"__type": "AddedToken", "content": "<|eot_id|>", "special": True}
    folder = model_folder(tmp_path / "base", None, eos_token=written)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|im_end|>"}))

    contract = contract_of(folder)

    assert contract.eos_token == "<|eot_id|>"
    assert (contract.pad_token_id,) == ids(folder, "<|im_end|>")


def test_a_null_bos_stays_absent_and_a_missing_pad_is_eos(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "base", None, bos_token=None, pad_token=None)
    (folder / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 1}')

    contract = contract_of(folder)

    assert contract.bos_token is None
    assert contract.pad_token_id == contract.eos_token_id


def test_tokens_that_only_the_model_configuration_names_are_found(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "base", None)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    eos = ids(folder, "<|eot_id|>")[0]
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": eos}))

    contract = contract_of(folder)

    assert (contract.bos_token, contract.eos_token) == ("<s>", "<|eot_id|>")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "base has no tokenizer.json; save one"),
        ("tokenizer.json", "{}", "base/tokenizer.json cannot be read"),
        ("tokenizer_config.json", "[", "base/tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[1]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"eos_token": null}', "names no end-of-sequence token"),
        ("tokenizer_config.json", '{"eos_token": "<gone>"}', "'<gone>' is not in its tokenizer"),
        ("config.json", "[" * 100_000, "base/config.json is not JSON"),
    ],
)
def test_a_folder_that_cannot_be_used_says_which_file_and_why(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    folder = model_folder(tmp_path / "base", None)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)

    with pytest.raises(RenderError, match=message):
        contract_of(folder)
