"""A manifest survives its round trip to the byte, and no damage to it passes."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.manifest import FileEntry, Manifest, decode, encode


def test_a_manifest_comes_back_equal(draft: Manifest) -> None:
    assert decode(encode(draft)) == draft


def test_a_stored_manifest_is_plain_json(draft: Manifest) -> None:
    stored = json.loads(encode(draft))
    assert stored["kind"] == "lora"
    assert stored["contract"]["stop_token_ids"] == [2]
    assert stored["probes"][0]["logprobs"] == [-0.1, -1 / 3]


def test_every_flipped_byte_is_noticed(draft: Manifest) -> None:
    stored = encode(draft)
    passed = []
    for at in range(len(stored)):
        damaged = bytearray(stored)
        damaged[at] ^= 1 << (at % 8)
        try:
            if decode(bytes(damaged)) != draft:
                passed.append(at)
        except ValueError:
            continue
    assert passed == []


@pytest.mark.parametrize("data", [b"", b"{}", b",", b"null", b'{"sha256": "' + b"0" * 64 + b'"}'])
def test_what_was_never_sealed_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="sha256"):
        decode(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(template=st.text(), value=st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_number_round_trips(draft: Manifest, template: str, value: float) -> None:
    if any(0xD800 <= ord(character) < 0xE000 for character in template):
        return  # no lone surrogate gets past the row parser or a tokenizer file
    manifest = draft.model_copy(
        update={"contract": {"chat_template": template}, "metrics": {"x": value}}
    )
    assert decode(encode(manifest)) == manifest


def test_a_manifest_is_strict(draft: Manifest) -> None:
    with pytest.raises(ValidationError, match="extra"):
        Manifest.model_validate({**draft.model_dump(), "surprise": 1})
    with pytest.raises(ValidationError, match="adapter_id"):
        Manifest.model_validate({**draft.model_dump(), "adapter_id": "../../etc"})
    with pytest.raises(ValidationError, match="pattern"):
        FileEntry(name="a", size_bytes=1, sha256="x")


def test_a_manifest_from_before_there_were_merges_is_read(draft: Manifest) -> None:
    stored = draft.model_dump(mode="json")
    del stored["lineage"]["parents"]
    assert Manifest.model_validate(stored) == draft
    parents = [{"adapter_id": "ad_" + "0" * 24, "weight": 0.5}]
    merged = stored | {"lineage": stored["lineage"] | {"parents": parents}}
    assert decode(encode(Manifest.model_validate(merged))).lineage.parents[0].weight == 0.5
