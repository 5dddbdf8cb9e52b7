"""Keys stay under their tenant, whatever the names and ids are."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import keys

TENANT, DATASET, JOB, ADAPTER = ("tn_" + "a" * 24, "ds_" + "b" * 24, "job_" + "c" * 24,
                                 "ad_" + "d" * 24)  # fmt: skip
UPLOAD, PART = "up_" + "e" * 24, "pt_" + "f" * 24


def test_keys_say_whose_they_are_and_what_they_hold() -> None:
    assert keys.dataset_source(TENANT, DATASET) == f"tenants/{TENANT}/datasets/{DATASET}/source"
    assert keys.checkpoint_file(TENANT, JOB, 2, 30, "manifest.json") == (
        f"tenants/{TENANT}/jobs/{JOB}/attempts/000002/checkpoints/0000000030/manifest.json"
    )
    assert keys.adapter_prefix(TENANT, ADAPTER) == f"tenants/{TENANT}/adapters/{ADAPTER}/"
    assert keys.adapter_file(TENANT, ADAPTER, "model-00001-of-00002.safetensors") == (
        f"tenants/{TENANT}/adapters/{ADAPTER}/model-00001-of-00002.safetensors"
    )
    assert keys.upload_part(TENANT, UPLOAD, PART) == f"tenants/{TENANT}/uploads/{UPLOAD}/{PART}"
    assert keys.adapter_pointer(ADAPTER) == f"index/adapters/{ADAPTER}.json"


def test_checkpoints_sort_by_attempt_and_step() -> None:
    pairs = [(1, 5), (1, 10), (2, 1), (10, 0)]
    made = [keys.checkpoint_prefix(TENANT, JOB, attempt, step) for attempt, step in pairs]
    assert made == sorted(made)


def test_every_key_says_what_it_belongs_to() -> None:
    of_dataset = keys.owned(keys.dataset_source(TENANT, DATASET))
    of_adapter = keys.owned(keys.adapter_file(TENANT, ADAPTER, "README.md"))
    of_upload = keys.owned(keys.upload_part(TENANT, UPLOAD, PART))
    of_checkpoint = keys.owned(keys.checkpoint_file(TENANT, JOB, 2, 30, "state.bin"))
    of_pointer = keys.pointed(keys.adapter_pointer(ADAPTER))

    prefix = keys.dataset_prefix(TENANT, DATASET)
    assert of_dataset == keys.Owned("dataset", TENANT, DATASET, prefix)
    prefix = keys.adapter_prefix(TENANT, ADAPTER)
    assert of_adapter == keys.Owned("adapter", TENANT, ADAPTER, prefix)
    prefix = keys.upload_prefix(TENANT, UPLOAD)
    assert of_upload == keys.Owned("upload", TENANT, UPLOAD, prefix)
    prefix = keys.checkpoint_prefix(TENANT, JOB, 2, 30)
    assert of_checkpoint == keys.Owned("checkpoint", TENANT, JOB, prefix, attempt=2, step=30)
    assert of_pointer == keys.Owned("pointer", "", ADAPTER, keys.adapter_pointer(ADAPTER))


@pytest.mark.parametrize("key", [f"tenants/{TENANT}/notes/{DATASET}/x", "tenants/x", "index/x"])
def test_a_key_that_no_builder_makes_belongs_to_nothing(key: str) -> None:
    assert keys.owned(key) is None
    assert keys.pointed(key) is None


BUILDERS: list[Callable[[str], str]] = [
    lambda odd: keys.dataset_source(odd, DATASET),
    lambda odd: keys.dataset_source(TENANT, odd),
    lambda odd: keys.upload_part(odd, UPLOAD, PART),
    lambda odd: keys.upload_part(TENANT, odd, PART),
    lambda odd: keys.upload_part(TENANT, UPLOAD, odd),
    lambda odd: keys.job_prefix(odd, JOB),
    lambda odd: keys.job_prefix(TENANT, odd),
    lambda odd: keys.checkpoint_prefix(TENANT, odd, 1, 1),
    lambda odd: keys.checkpoint_file(TENANT, JOB, 1, 1, odd),
    lambda odd: keys.adapter_prefix(odd, ADAPTER),
    lambda odd: keys.adapter_prefix(TENANT, odd),
    lambda odd: keys.adapter_file(TENANT, ADAPTER, odd),
    lambda odd: keys.adapter_pointer(odd),
]
ODD = ["", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", ".hidden", "a..b", "a\n", "a\0", "ä",
       "%2e%2e", "ad_" + "d" * 24 + "\n", "tn_" + "\uff11" * 24, "x" * 300]  # fmt: skip


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("odd", ODD)
def test_odd_ids_and_names_make_no_key(build: Callable[[str], str], odd: str) -> None:
    with pytest.raises(ValueError, match=r"not an id|cannot name"):
        build(odd)


@pytest.mark.parametrize("odd", ["tn_" + "A" * 24, "tn_" + "a" * 23, "tn_" + "a" * 25, ADAPTER])
def test_an_id_of_another_kind_or_length_makes_no_key(odd: str) -> None:
    with pytest.raises(ValueError, match="expected tn_ and 24 hex digits"):
        keys.adapter_prefix(odd, ADAPTER)


@given(st.text(), st.text(), st.text())
def test_no_text_leaves_the_tenants_prefix(tenant: str, adapter: str, name: str) -> None:
    for make in (
        lambda: keys.adapter_file(TENANT, ADAPTER, name),
        lambda: keys.adapter_file(TENANT, adapter, name),
        lambda: keys.adapter_file(tenant, adapter, name),
    ):
        try:
            key = make()
        except ValueError:
            continue
        assert keys.check_key(key).startswith(f"tenants/{TENANT}/adapters/{ADAPTER}/")


@pytest.mark.parametrize(("attempt", "step"), [(0, 1), (-1, 1), (1, -1), (10**6, 1), (1, 10**10)])
def test_a_checkpoint_has_sane_numbers(attempt: int, step: int) -> None:
    with pytest.raises(ValueError, match="not the numbers"):
        keys.checkpoint_prefix(TENANT, JOB, attempt, step)
