"""A LoRA's file becomes a packed LoRA as PyTorch would make it, and no other file does."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from engine.infer import packing
from engine.infer.errors import AdapterRefused
from engine.infer.lora import Layout, packed
from engine.infer.lora_plan import Plans
from engine.infer.weights_file import read_index, read_numbers

SHAPES = {"q": (70, 130), "k": (3, 5), "unused": (4, 4), "v": (576, 192)}
DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(scope="module")
def packer() -> packing.Packer:
    found = packing.load()
    assert found is not None
    return found


def tensors_of(ranks: Mapping[str, int]) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, rank in ranks.items():
        n_in, n_out = SHAPES[name]
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, n_in)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(n_out, rank)
    return tensors


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:end]), whole[end:]


def write(path: Path, header: Mapping[str, Any], data: bytes, pad: int = 0) -> None:
    text = json.dumps(header).encode() + b" " * pad
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rank", "own"), [(8, 8), (5, 2), (4, 1), (12, 9), (64, 16)])
@pytest.mark.parametrize("pad", range(4))
def test_it_packs_what_torch_would(
    packer: packing.Packer, tmp_path: Path, rank: int, own: int, dtype: torch.dtype, pad: int
) -> None:
    torch.manual_seed(rank)
    layout, path = Layout(SHAPES), tmp_path / "adapter_model.safetensors"
    tensors = tensors_of({"k": own, "q": rank, "v": rank})
    save_file(tensors, path)
    write(path, *header_of(path), pad=pad)  # numbers may begin at any byte
    config = {"lora_alpha": 3, "alpha_pattern": {"q": 7}}

    index, numbers = read_numbers(path)
    plan = Plans(SHAPES, layout).find(config, index, frozenset())
    ours = plan.pack(numbers, layout, packer, dtype)

    pairs = {
        name: tuple(tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        for name in plan.layers
    }
    scalings = {"k": 3 / own, "q": 7 / rank, "v": 3 / rank}
    torchs = packed(pairs, layout, scalings)  # type: ignore[arg-type]  # each is a pair
    assert ours.packed is not None
    assert torchs.packed is not None
    assert torch.equal(ours.packed, torchs.packed.to(dtype))
    assert (ours.rank, sorted(ours.pairs)) == (torchs.rank, sorted(torchs.pairs))
    for name in pairs:
        for mine, its in zip(ours.pairs[name], torchs.pairs[name], strict=True):
            assert torch.equal(mine, its.to(dtype).float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_is_packed_as_none(packer: packing.Packer, dtype: torch.dtype) -> None:
    odd = torch.full((200,), -1, dtype=torch.int32).view(torch.float32)  # all of its bits are set
    rows = torch.tensor([[0, 72, 0, 8, 9, 10]])
    table = packing.Table(rows, torch.ones(1), 200, 8 * 19)
    whole = torch.zeros(8 * 19, dtype=dtype)
    packer.pack(odd, table, whole)
    assert whole.isnan().all()


def test_what_it_was_not_made_for_is_refused(packer: packing.Packer) -> None:
    table = packing.Table(torch.tensor([[0, 2, 0, 1, 2, 2]]), torch.ones(1), 4, 4)
    numbers, whole = torch.ones(4), torch.zeros(4)
    with pytest.raises(ValueError, match="for float32"):
        packer.pack(numbers.half(), table, whole)
    with pytest.raises(ValueError, match="for float32"):
        packer.pack(numbers, table, whole.half())
    with pytest.raises(ValueError, match="not of this table"):
        packer.pack(numbers[:3], table, whole)
    with pytest.raises(ValueError, match="not of this table"):
        packer.pack(numbers, table, whole[:3])
    with pytest.raises(ValueError, match="side by side"):
        packer.pack(torch.ones(8)[::2], table, whole)


@pytest.mark.parametrize(
    "dtypes", [(torch.float16,), (torch.bfloat16,), (torch.float32, torch.float16)]
)
def test_other_dtypes_are_packed_in_float32_or_rounded_once(
    packer: packing.Packer, tmp_path: Path, dtypes: tuple[torch.dtype, ...]
) -> None:
    layout, path = Layout(SHAPES), tmp_path / "adapter_model.safetensors"
    tensors = {
        name: tensor.to(dtypes[number % len(dtypes)])
        for number, (name, tensor) in enumerate(tensors_of({"q": 8, "v": 8}).items())
    }
    save_file(tensors, path)
    index, numbers = read_numbers(path)
    plan = Plans(SHAPES, layout).find({"lora_alpha": 8}, index, frozenset())
    for dtype in DTYPES:
        lora = plan.pack(numbers, layout, packer, dtype)
        for name, (lora_a, lora_b) in lora.pairs.items():
            for part, mine in (("A", lora_a), ("B", lora_b)):
                its = tensors[f"base_model.model.{name}.lora_{part}.weight"].float()
                assert torch.equal(mine, its.to(dtype).float())


def test_files_that_begin_alike_share_an_index_and_a_plan(tmp_path: Path) -> None:
    plans = Plans(SHAPES, Layout(SHAPES))
    first, second, third = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_file(tensors_of({"q": 8}), first)
    save_file(tensors_of({"q": 8}), second)
    save_file(tensors_of({"q": 9}), third)
    one, two, other = map(read_index, (first, second, third))
    assert one is two
    assert one is not other
    config = {"lora_alpha": 2, "r": 8}
    plan = plans.find(config, one, frozenset())
    assert plans.find({**config, "r": 9}, two, frozenset()) is plan
    for changed in ({"lora_alpha": 3}, {"use_rslora": True}, {"alpha_pattern": {"q": 3}}):
        assert plans.find({**config, **changed}, two, frozenset()) is not plan
    with pytest.raises(AdapterRefused, match="magnitude_vector"):
        plans.find({**config, "use_dora": True}, two, frozenset())


def test_a_known_header_in_front_of_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file(tensors_of({"q": 8}), path)
    header, data = header_of(path)
    assert read_index(path).numbers == 8 * 200
    for changed in (data[:-4], data + bytes(4), b""):
        write(path, header, changed)
        with pytest.raises(SafetensorError):
            read_index(path)
    write(path, header, data)
    os.truncate(path, 6)
    with pytest.raises(SafetensorError):
        read_index(path)


@pytest.mark.parametrize("offsets", [[0, 8], [8, 24], [4, 20], [0, 1 << 60]])
def test_offsets_that_do_not_fit_are_refused(tmp_path: Path, offsets: list[int]) -> None:
    path = tmp_path / "adapter_model.safetensors"
    write(path, {"a": {"dtype": "F32", "shape": [4], "data_offsets": offsets}}, bytes(16))
    for _ in range(2):  # what was refused is not known
        with pytest.raises(SafetensorError):
            read_numbers(path)


def test_a_file_of_no_numbers_has_none(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file({"a": torch.zeros(0, 3), "b": torch.zeros(0)}, path)
    index, numbers = read_numbers(path)
    assert list(numbers) == []
    assert index.places["a"].of(numbers).shape == (0, 3)
