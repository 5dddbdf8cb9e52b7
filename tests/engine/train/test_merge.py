"""Adapters merged by peft: exact where it can be, honest where it cannot, and served as said."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from engine.infer.probes import compute_logprobs
from engine.plan import Parent, Probe
from engine.train.errors import StopRequested, TrainingFailed
from engine.train.merge import choose
from tests.bases import make_base
from tests.engine.infer.world import load
from tests.engine.train.blends import (
    CONTRACT,
    IDS,
    blend,
    deltas,
    distance,
    make_adapter,
    total,
    weighted,
)

SHARED = 1e-6  # float32's rounding, twice


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Parent]:
    """Two adapters of one rank, 0.7 of one and 0.3 of the other."""
    root = tmp_path_factory.mktemp("pair")
    made = [make_adapter(base, root / f"ad_{seed}", seed) for seed in (1, 2)]
    return [weighted(made[0], 0.7), weighted(made[1], 0.3)]


def mixed(base: Path, root: Path) -> list[Parent]:
    """What differs in rank, scaling and layers: with rsLoRA, or by a regular expression."""
    names = ["q_proj", "up_proj"]
    first = {"r": 2, "lora_alpha": 3, "use_rslora": True, "layers_to_transform": [0]}
    return [
        weighted(make_adapter(base, root / "ad_1", 1, **first), 0.5),
        weighted(make_adapter(base, root / "ad_2", 2, r=4, target_modules=names), -1.25),
        make_adapter(base, root / "ad_3", 3, r=3, target_modules=r".*\.1\.self_attn\.k_proj"),
    ]


def test_cat_is_the_weighted_sum_of_what_the_parents_add(base: Path, tmp_path: Path) -> None:
    parents = mixed(base, tmp_path)
    finished, told = blend(base, tmp_path / "run", parents, "cat", rank=9)
    made, exact = deltas(base, finished.path), total(base, parents)
    assert distance(made, exact) < SHARED
    assert finished.metrics["merge_error"] < SHARED
    assert finished.metrics["merge_logprob_gap"] < 1e-5
    assert told.warnings == []
    assert [(report.adapters, report.error < SHARED) for report in told.merged] == [(3, True)]
    config = json.loads((finished.path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (9, 9, False)
    assert config["base_model_name_or_path"] == "tiny"
    assert "k_proj" not in config["target_modules"], "layer 0 has none"
    assert sorted(path.name for path in finished.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_linear_is_the_product_of_the_weighted_matrices(
    base: Path, tmp_path: Path, pair: list[Parent]
) -> None:
    """(sum sqrt(w s) B)(sum sqrt(w s) A): each by itself, so that B of one meets A of the other."""
    finished, told = blend(base, tmp_path / "run", pair, "linear")
    weights = [load_file(parent.path / "adapter_model.safetensors") for parent in pair]
    made = load_file(finished.path / "adapter_model.safetensors")
    for name, matrix in made.items():
        expected = sum(
            math.sqrt(parent.weight * 8 / 4) * one[name]
            for parent, one in zip(pair, weights, strict=True)
        )
        torch.testing.assert_close(matrix, expected)
    error = distance(deltas(base, finished.path), total(base, pair))
    assert finished.metrics["merge_error"] == pytest.approx(error, rel=1e-5)
    assert error > 0.5
    (warning,) = told.warnings
    assert f"{error:.1%}" in warning
    assert "`cat` loses nothing" in warning
    config = json.loads((finished.path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]


@pytest.mark.parametrize("rank", [1, 3, 6, 8])
def test_the_error_of_svd_is_the_share_of_the_singular_values_that_it_cuts_off(
    base: Path, tmp_path: Path, pair: list[Parent], rank: int
) -> None:
    finished, _ = blend(base, tmp_path / "run", pair, "svd", rank=rank, svd_rank=rank)
    spectra = [torch.linalg.svdvals(delta) for delta in total(base, pair).values()]
    cut = sum(float((values[rank:] ** 2).sum()) for values in spectra)
    whole = sum(float((values**2).sum()) for values in spectra)
    expected = math.sqrt(cut / whole)
    assert finished.metrics["merge_error"] == pytest.approx(expected, rel=1e-4, abs=SHARED)
    assert (expected < SHARED) == (rank == 8)


def test_the_gap_is_to_the_exact_sum_and_the_probes_are_the_results_own(
    base: Path, tmp_path: Path, pair: list[Parent]
) -> None:
    finished, _ = blend(base, tmp_path / "run", pair, "svd", rank=1, svd_rank=1)
    exact, _ = blend(base, tmp_path / "exact", pair, "cat", rank=8)
    assert [probe.token_ids for probe in finished.probes] == [(*IDS, 65), (*IDS, 66)]
    plain, made = load(base), load(base, finished.path)
    for probe in finished.probes:
        ids = probe.token_ids
        assert probe.base_logprobs == pytest.approx(compute_logprobs(plain, ids, 2), abs=1e-5)
        assert probe.logprobs == pytest.approx(compute_logprobs(made, ids, 2), abs=1e-5)
    apart = [
        abs(one - other)
        for ours, theirs in zip(finished.probes, exact.probes, strict=True)
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True)
    ]
    assert sum(apart) > 0.01
    assert finished.metrics["merge_logprob_gap"] == pytest.approx(sum(apart) / len(apart), abs=1e-5)
    lost = [
        abs(one - other)
        for parent, ours in zip(pair, exact.probes, strict=True)
        for one, other in zip(ours.logprobs, parent.probes[0].logprobs, strict=True)
    ]
    gap = exact.metrics["parents_logprob_gap"]
    assert gap == pytest.approx(sum(lost) / len(lost), abs=1e-5)
    assert finished.contract == CONTRACT


@pytest.mark.parametrize(
    "how",
    ["ties", "dare_linear", "dare_ties", "magnitude_prune", "ties_svd", "dare_linear_svd",
     "dare_ties_svd", "magnitude_prune_svd"],
)  # fmt: skip
def test_what_leaves_numbers_out_is_the_same_for_the_same_seed(
    base: Path, tmp_path: Path, pair: list[Parent], how: str
) -> None:
    runs = [
        blend(base, tmp_path / str(at), pair, how, seed=seed, density=0.5)[0]
        for at, seed in enumerate((5, 5, 6))
    ]
    first, again, other = ((run.path / "adapter_model.safetensors").read_bytes() for run in runs)
    assert first == again
    assert (first != other) == how.startswith("dare"), "the rest draws nothing"
    error = distance(deltas(base, runs[0].path), total(base, pair))
    assert runs[0].metrics["merge_error"] == pytest.approx(error, rel=1e-4)
    assert error > 0.1


def test_a_density_of_one_leaves_nothing_out(
    base: Path, tmp_path: Path, pair: list[Parent]
) -> None:
    finished, _ = blend(
        base, tmp_path / "run", pair, "dare_linear_svd", rank=8, svd_rank=8, density=1
    )
    assert finished.metrics["merge_error"] < SHARED


def test_one_adapter_is_scaled(base: Path, tmp_path: Path, pair: list[Parent]) -> None:
    finished, _ = blend(base, tmp_path / "run", [weighted(pair[0], -0.5)], "linear")
    assert finished.metrics["merge_error"] < SHARED
    assert distance(deltas(base, finished.path), total(base, [weighted(pair[0], -0.5)])) < SHARED


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_what_is_merged_into_the_base_says_what_the_adapter_says(
    base: Path, tmp_path: Path, dora: bool
) -> None:
    parent = make_adapter(base, tmp_path / "ad_1", 1, target_modules="all-linear", use_dora=dora)
    finished, told = blend(base, tmp_path / "run", [parent], None)
    tuned = load(base, parent.path)
    whole = load(finished.path)
    ids = torch.tensor([list(IDS)])
    with torch.no_grad():
        torch.testing.assert_close(whole(input_ids=ids).logits, tuned(input_ids=ids).logits)
    expected = PeftModel.from_pretrained(load(base), parent.path).merge_and_unload().state_dict()
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert (finished.kind, finished.metrics["merge_error"], told.warnings) == ("full", 0.0, [])
    assert finished.metrics["merge_logprob_gap"] < 1e-5
    assert finished.probes[0].logprobs == pytest.approx(parent.probes[0].logprobs, abs=1e-5)
    names = {path.name for path in finished.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "adapter_config.json" not in names


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
def test_an_output_head_that_is_the_embeddings_too_is_not_merged_into(
    base: Path, tmp_path: Path
) -> None:
    head = make_adapter(base, tmp_path / "ad_1", 1, target_modules=["q_proj", "lm_head"])
    with pytest.raises(TrainingFailed, match="is the embeddings too") as refused:
        blend(base, tmp_path / "run", [head], None)
    assert refused.value.code == "merge_unsupported"


@pytest.mark.parametrize("how", ["cat", None])
def test_what_predicts_no_probabilities_is_no_result(
    base: Path, tmp_path: Path, pair: list[Parent], how: str | None
) -> None:
    path = tmp_path / "ad_broken"
    shutil.copytree(pair[0].path, path)
    weights = load_file(path / "adapter_model.safetensors")
    save_file(
        {name: matrix * 1e30 for name, matrix in weights.items()},
        path / "adapter_model.safetensors",
    )
    broken = pair[0].model_copy(update={"path": path, "weight": 1.0})
    with pytest.raises(TrainingFailed) as refused:
        blend(base, tmp_path / "run", [broken], how)
    assert refused.value.code == "diverged"


def test_rounding_to_what_is_served_is_counted_and_told(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where models are served in bfloat16."""
    monkeypatch.setattr("engine.train.merge.compute_dtype", lambda: torch.bfloat16)
    parent = make_adapter(base, tmp_path / "ad_1", 1, scale=0.01)
    finished, told = blend(base, tmp_path / "run", [parent], None)
    plain, added = load(base).state_dict(), total(base, [parent])
    lost = 0.0
    for name, delta in added.items():
        exact = plain[name.removeprefix("base_model.model.") + ".weight"] + delta.float()
        lost += float((exact.bfloat16().float() - exact).norm()) ** 2
    share = math.sqrt(lost / sum(float(delta.norm()) ** 2 for delta in added.values()))
    assert finished.metrics["merge_error"] == pytest.approx(share, rel=1e-3)
    assert share > 0.05
    assert "Rounding does that" in told.warnings[0]
    stored = load_file(finished.path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_parents_of_a_quantized_base_are_told_of(
    base: Path, tmp_path: Path, pair: list[Parent]
) -> None:
    quantized = pair[0].model_copy(update={"quantization_logprob_gap": 0.0625})
    _, told = blend(base, tmp_path / "run", [quantized, pair[1]], "cat", rank=8)
    (warning,) = told.warnings
    assert "ad_1 was trained on a base in 4 bits" in warning
    assert "0.062 nats" in warning


def test_adapters_without_probes_give_a_result_without(
    base: Path, tmp_path: Path, pair: list[Parent]
) -> None:
    parents = [parent.model_copy(update={"probes": ()}) for parent in pair]
    finished, told = blend(base, tmp_path / "run", parents, "cat", rank=8)
    assert finished.probes == ()
    assert finished.metrics.keys() == {"merge_error"}
    assert told.merged[0].logprob_gap is None
    assert "None of the adapters has probes" in told.warnings[0]


def test_each_parent_brings_probes_in_turn_and_none_is_there_twice() -> None:
    def parent(*firsts: int) -> Parent:
        made = [
            Probe(token_ids=(n, 0), prompt_tokens=1, logprobs=(-1.0,), base_logprobs=(-1.0,))
            for n in firsts
        ]
        return Parent(adapter_id="ad", path=Path(), weight=1, probes=tuple(made))

    chosen = choose([parent(1, 2, 3, 4, 5), parent(6, 1), parent(), parent(7, 8, 9, 10)])
    assert [probe.token_ids[0] for probe in chosen] == [1, 6, 7, 2, 8, 3, 9, 4]


def refused(base: Path, work_dir: Path, parents: list[Parent], how: str, **plan: float) -> str:
    with pytest.raises(TrainingFailed) as failure:
        blend(base, work_dir, parents, how, **plan)  # type: ignore[arg-type]  # any of them
    return failure.value.code


def test_what_nothing_is_left_of_is_no_adapter(
    base: Path, tmp_path: Path, pair: list[Parent]
) -> None:
    twin = shutil.copytree(pair[0].path, tmp_path / "ad_twin")
    against = pair[0].model_copy(update={"adapter_id": "ad_twin", "path": twin, "weight": -0.7})
    assert refused(base, tmp_path / "a", [pair[0], against], "cat", rank=8) == "merge_empty"
    assert refused(base, tmp_path / "b", pair, "ties", density=1e-6) == "merge_empty"


def test_ranks_that_differ_from_layer_to_layer_are_refused_where_they_upset_the_result(
    base: Path, tmp_path: Path, pair: list[Parent]
) -> None:
    odd = make_adapter(base, tmp_path / "ad_odd", 3, rank_pattern={"v_proj": 6})
    assert refused(base, tmp_path / "a", [pair[0], odd], "linear") == "ranks_differ"
    assert refused(base, tmp_path / "b", [pair[0], odd], "cat", rank=8) == "ranks_differ"
    assert refused(base, tmp_path / "c", pair, "svd", rank=40) == "rank_too_high"
    finished, _ = blend(base, tmp_path / "d", [pair[0], odd], "svd", rank=10)
    assert finished.metrics["merge_error"] < SHARED


@pytest.mark.parametrize("directive", ["cancel", "pause"])
def test_a_merge_stops_when_it_is_told_to(
    base: Path, tmp_path: Path, pair: list[Parent], directive: str
) -> None:
    with pytest.raises(StopRequested, match=directive):
        blend(base, tmp_path / "run", pair, "cat", rank=8, directive=directive)
