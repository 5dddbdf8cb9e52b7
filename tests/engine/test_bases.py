"""The allow-list: only its names can be used, and a base is known again by its content."""

import json
from pathlib import Path

import pytest

from engine.bases import BaseCatalogue, BaseNotAllowed, BaseUnusable, context_length

SMALL = {"max_position_embeddings": 128}


def make(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SMALL | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    return folder


def test_a_folder_is_found_by_its_name(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    base = BaseCatalogue({"mine": str(folder)}).find("mine")
    assert (base.name, base.path) == ("mine", folder)
    assert context_length(base.path) == 128


@pytest.mark.parametrize(
    "name",
    ["other", "../m", "/etc", "file:///etc", "http://169.254.169.254/", "mine\u2024", ""],
)
def test_what_is_not_on_the_list_is_refused_whatever_it_looks_like(
    tmp_path: Path, name: str
) -> None:
    catalogue = BaseCatalogue({"mine": str(make(tmp_path / "m"))})
    with pytest.raises(BaseNotAllowed, match="is not on this server's list: mine"):
        catalogue.find(name)


def test_the_revision_changes_with_the_content_and_only_with_it(tmp_path: Path) -> None:
    one, same = make(tmp_path / "one"), make(tmp_path / "same")
    other, weights = make(tmp_path / "other", hidden_size=8), make(tmp_path / "weights")
    data = bytearray((weights / "model.safetensors").read_bytes())
    data[500_000] ^= 1
    (weights / "model.safetensors").write_bytes(data)

    def revision(folder: Path) -> str:
        return BaseCatalogue({"m": str(folder)}).find("m").revision

    assert revision(one) == revision(same)
    assert len({revision(one), revision(other), revision(weights)}) == 3


def test_a_base_that_needs_its_own_code_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(BaseUnusable, match="auto_map"):
        BaseCatalogue({"m": str(folder)}).find("m")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_base_without_what_rendering_needs_is_refused(tmp_path: Path, missing: str) -> None:
    folder = make(tmp_path / "m")
    (folder / missing).unlink()
    with pytest.raises(BaseUnusable, match=missing):
        BaseCatalogue({"m": str(folder)}).find("m")


def test_a_folder_that_is_gone_is_the_operators_to_mend(tmp_path: Path) -> None:
    with pytest.raises(BaseUnusable, match="ask the operator"):
        BaseCatalogue({"m": str(tmp_path / "nowhere")}).find("m")


def test_a_hub_model_that_is_not_on_this_machine_is_said_to_be_unavailable() -> None:
    with pytest.raises(BaseUnusable, match="could not be fetched"):
        BaseCatalogue({"m": "nobody/nothing@" + "0" * 40}).find("m")
