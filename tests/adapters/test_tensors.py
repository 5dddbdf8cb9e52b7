"""Headers are read as the safetensors library reads them, only with less trust."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from safetensors import SafetensorError
from safetensors.numpy import load, save, save_file

from adapters.errors import AdapterError, AdapterInvalid
from adapters.tensors import base_shapes, check_finite, read_header
from tests import clock
from tests.adapters.crafting import file_of, lora, safetensors

fuzzing = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None
)
arrays = st_numpy.arrays(
    st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.bool_]),
    st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@fuzzing
@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), arrays, max_size=5))
def test_what_the_library_writes_is_read_with_its_shapes(
    tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    tensors.pop("__metadata__", None)
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(tensors, {"format": "pt"}))
    shapes = {name: info.shape for name, info in read_header(path).items()}
    assert shapes == {name: array.shape for name, array in tensors.items()}


@fuzzing
@given(st.data())
def test_damage_is_never_more_than_an_invalid_adapter(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(safetensors(lora()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.safetensors"
    path.write_bytes(damaged)
    try:
        header = read_header(path)
        check_finite(path, header)
    except AdapterInvalid:
        return
    loaded = load(bytes(damaged))  # what we take, the library takes too
    assert {name: array.shape for name, array in loaded.items()} == {
        name: info.shape for name, info in header.items()
    }


@fuzzing
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with suppress(AdapterInvalid):
        read_header(path)


@pytest.mark.parametrize("order", [1, -1])
def test_a_file_the_library_refuses_is_refused(tmp_path: Path, order: int) -> None:
    entries = {"a": [0, 8], "b": [4, 12]}
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": offsets}
        for name, offsets in list(entries.items())[::order]
    }
    data = file_of(header, bytes(12))
    with pytest.raises(SafetensorError):
        load(data)
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(AdapterInvalid, match="overlaps"):
        read_header(tmp_path / "a.safetensors")


def test_a_real_header_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of(b"{" + b" " * 5000))
    with pytest.raises(AdapterInvalid, match="the limit is 4096") as caught:
        read_header(path, max_header_bytes=4096)
    assert caught.value.code == "header_too_large"


def test_the_header_of_a_file_of_100_mb_is_checked_within_a_second(tmp_path: Path) -> None:
    names = [f"base_model.model.model.layers.{n}.mlp.up_proj.lora_A.weight" for n in range(1000)]
    save_file({name: np.zeros(25_000, np.float32) for name in names}, tmp_path / "a.safetensors")
    started = clock.now()
    header = read_header(tmp_path / "a.safetensors")
    assert len(header) == 1000
    assert clock.now() - started < 1


@pytest.mark.parametrize("at", [0, 1_100_000, 2_999_999])
def test_one_bad_number_among_millions_is_found(tmp_path: Path, at: int) -> None:
    numbers = np.ones(3_000_000, np.float32)
    numbers[at] = np.nan
    path = tmp_path / "a.safetensors"
    save_file({"good": np.ones(10, np.float32), "spoilt": numbers}, path)
    with pytest.raises(AdapterInvalid, match="'spoilt' has NaN weights"):
        check_finite(path, read_header(path))


def test_the_largest_and_smallest_numbers_are_finite(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    extremes = {
        kind.__name__: np.array([np.finfo(kind).max, np.finfo(kind).tiny, -0.0], kind)
        for kind in (np.float16, np.float32, np.float64)
    }
    save_file(extremes, path)
    check_finite(path, read_header(path))


def test_a_base_is_read_whole_or_in_shards(tmp_path: Path) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    tensors = {"a.weight": np.ones((2, 3), np.float32), "b.weight": np.ones(4, np.float32)}
    for folder in (whole, sharded):
        folder.mkdir()
    save_file(tensors, whole / "model.safetensors")
    names = {"a.weight": "model-00001-of-00002.safetensors",
             "b.weight": "model-00002-of-00002.safetensors"}  # fmt: skip
    for name, file_name in names.items():
        save_file({name: tensors[name]}, sharded / file_name)
    index = {"metadata": {"total_size": 40}, "weight_map": names}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert base_shapes(whole) == base_shapes(sharded) == {"a.weight": (2, 3), "b.weight": (4,)}


@pytest.mark.parametrize(
    "index",
    [None, "[", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": "../x.safetensors"}}',
     '{"weight_map": {"a": "gone.safetensors"}}'],
)  # fmt: skip
def test_a_base_without_readable_weights_is_the_operators_to_mend(
    tmp_path: Path, index: str | None
) -> None:
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(AdapterError, match="the operator should download it again"):
        base_shapes(tmp_path)
