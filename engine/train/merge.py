"""A merge job: adapters of one base made into one, or one put into the base, and what that lost."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import set_seed

from engine.plan import Finished, Merged, MergePlan, Parent, Probe, Warned
from engine.spec import KIND_OF_PEFT, LoraPeft
from engine.train.combining import RESULT, combine, load_parents, summed
from engine.train.deltas import lora_layers, size
from engine.train.errors import StopRequested, TrainingFailed
from engine.train.link import Link
from engine.train.model import compute_dtype, export, load_base
from engine.train.probing import measure
from engine.train.quantization import LARGE_GAP, Rows, device_for, gap

LARGE_ERROR = 0.05  # of what the parents add: more than this, and the client is told
PROBES = 8
NOTHING = 1e-6  # of the parents: what rounding leaves where they cancel each other


class Made(NamedTuple):
    """The model with what was merged, how far its weights are from the exact sum, and log-probs.

    `base`, `exact` and `merged`: of each probe, by the base alone, by the exact sum, by the result.
    """

    model: Any
    error: float
    base: Rows
    exact: Rows
    merged: Rows


def run(plan: MergePlan, link: Link) -> Finished:
    """Merge the plan's adapters, and leave the result in `work_dir/adapter`.

    Raises StopRequested between two parts of the work, and TrainingFailed.
    """
    begun = time.monotonic()
    set_seed(plan.seed)  # dare draws what it leaves out
    for message in _of_quantized(plan.parents):
        link.send(Warned(message=message))
    probes = choose(plan.parents)
    make = _into_base if plan.method.into_base else _combined
    made = make(plan, link, [(list(probe.token_ids), probe.prompt_tokens) for probe in probes])
    _require_finite(made)
    folder = plan.work_dir / "adapter"
    export(made.model, plan.base_name, plan.base_path, folder)
    metrics = {"merge_error": made.error}
    if probes:
        metrics["merge_logprob_gap"] = gap(made.exact, made.merged)
        metrics["parents_logprob_gap"] = gap([probe.logprobs for probe in probes], made.merged)
    _tell(plan, link, metrics)
    return Finished(
        path=folder,
        kind=KIND_OF_PEFT[plan.peft.type],
        training_s=time.monotonic() - begun,
        metrics=metrics,
        probes=tuple(
            probe.model_copy(update={"logprobs": after, "base_logprobs": before})
            for probe, before, after in zip(probes, made.base, made.merged, strict=True)
        ),
        contract=plan.contract,
    )


def choose(parents: Sequence[Parent]) -> list[Probe]:
    """Up to PROBES of the parents' probes, the first of each, then the second, none twice."""
    most = max(len(parent.probes) for parent in parents)
    in_turn = [p.probes[i] for i in range(most) for p in parents if i < len(p.probes)]
    unique: dict[tuple[int, ...], Probe] = {}
    for probe in in_turn:
        unique.setdefault(probe.token_ids, probe)
    return list(unique.values())[:PROBES]


def _combined(plan: MergePlan, link: Link, probes: list[tuple[list[int], int]]) -> Made:
    assert isinstance(plan.peft, LoraPeft)
    base = load_base(plan.base_path)
    base.to(device_for(base.get_memory_footprint()))
    before = measure(base, probes)
    _go_on(link)
    model, weights = load_parents(base, plan.parents)
    _go_on(link)
    combine(model, weights, plan.method, plan.peft.r, plan.base_path)
    _go_on(link)
    error = _error(model, weights)
    with summed(model, weights):
        exact = measure(model, probes)
    return Made(model, error, before, exact, measure(model, probes))


def _error(model: Any, weights: Mapping[str, float]) -> float:
    """||D - S|| / ||S||: D is what the result adds, S the weighted sum of what the parents add."""
    parts = sum(size(model, {name: weight}) for name, weight in weights.items())
    exact = size(model, weights)
    if min(exact, size(model, {RESULT: 1.0})) <= NOTHING * parts:
        raise TrainingFailed(
            "merge_empty",
            "Nothing is left of the adapters: their weighted sum, or what `density` keeps of it, "
            "is zero. Change the weights, or raise `density`.",
        )
    return size(model, {**weights, RESULT: -1.0}) / exact


def _into_base(plan: MergePlan, link: Link, probes: list[tuple[list[int], int]]) -> Made:
    """Added up in float32 and then rounded to what the base is served in."""
    base = load_base(plan.base_path, dtype=torch.float32)
    base.to(device_for(base.get_memory_footprint()))
    before = measure(base, probes)
    _go_on(link)
    model = PeftModel.from_pretrained(base, plan.parents[0].path, adapter_name=RESULT).eval()
    _refuse_shared_head(model)
    exact = measure(model, probes)
    _go_on(link)
    error = _merge_layers(model, link)
    whole = model.unload().to(compute_dtype())
    return Made(whole, error, before, exact, measure(whole, probes))


def _merge_layers(model: Any, link: Link) -> float:
    """Merge each layer by itself; what rounding loses, as a share of what the adapter adds.

    As peft's merge_and_unload does all at once, but with one layer's weight kept to compare.
    """
    lost = added = 0.0
    for _, layer in lora_layers(model):
        _go_on(link)
        weight = layer.get_base_layer().weight
        before = weight.detach().clone()
        layer.merge(adapter_names=[RESULT])
        added += float(torch.linalg.vector_norm(weight.detach() - before)) ** 2
        rounded = weight.detach().to(compute_dtype()).float()
        lost += float(torch.linalg.vector_norm(rounded - weight.detach())) ** 2
    if not added:
        raise TrainingFailed("merge_empty", "The adapter adds nothing to its base.")
    return math.sqrt(lost / added)


def _refuse_shared_head(model: Any) -> None:
    base = model.get_base_model()
    if base.config.tie_word_embeddings and isinstance(base.get_output_embeddings(), BaseTunerLayer):
        raise TrainingFailed(
            "merge_unsupported",
            "The adapter changes the output head, which in this base is the embeddings too; "
            "merging it would change both. Serve it as an adapter.",
        )


def _of_quantized(parents: Sequence[Parent]) -> Iterator[str]:
    for parent in parents:
        if parent.quantization_logprob_gap is not None:
            yield (
                f"Adapter {parent.adapter_id} was trained on a base in 4 bits and is merged on the "
                "base as it is, where its own log-probs are "
                f"{parent.quantization_logprob_gap:.3f} nats a token from those it had in training."
            )


def _tell(plan: MergePlan, link: Link, metrics: dict[str, float]) -> None:
    error, off = metrics["merge_error"], metrics.get("merge_logprob_gap")
    link.send(Merged(adapters=len(plan.parents), error=error, logprob_gap=off))
    if off is None:
        text = "None of the adapters has probes, so the result has none to be checked by."
        link.send(Warned(message=text))
    if error <= LARGE_ERROR and (off or 0) <= LARGE_GAP:
        return
    on_probes = "" if off is None else f", and its log-probs {off:.3f} nats a token"
    if plan.method.into_base:
        way = "Rounding does that; serve it as an adapter to lose nothing."
    else:
        way = "`cat` loses nothing, and svd less with a higher `svd_rank`."
    what = f"The result's weights are {error:.1%} (Frobenius norm) from the exact weighted sum"
    link.send(Warned(message=f"{what}{on_probes}. {way}"))


def _require_finite(made: Made) -> None:
    if not all(math.isfinite(logprob) for row in made.merged for logprob in row):
        text = "The merged model predicts no probabilities; lower the weights in `adapters`."
        raise TrainingFailed("diverged", text)


def _go_on(link: Link) -> None:
    if link.directive != "continue":
        raise StopRequested(link.directive)
