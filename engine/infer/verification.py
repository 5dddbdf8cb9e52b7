"""Served equals trained: an adapter's probes are recomputed by the path that will serve it."""

import asyncio
from collections.abc import Sequence

from engine.infer.errors import AdapterRefused, GenerationFailed
from engine.infer.events import EventQueue
from engine.infer.folder import Probe
from engine.infer.generator import Failed, Generator, PromptScored, SequenceRequest
from engine.infer.lora import LoraWeights
from engine.infer.model import ServedModel

_NO_EFFECT = 1e-6


class Verifier:
    """Checks adapters against their probes, and that they differ from the base.

    `tolerance` is the largest difference of a log-prob taken for noise. `sample_ids` stand in for
    the probes of an adapter that was made elsewhere and has none.
    """

    def __init__(
        self,
        generator: Generator,
        base: ServedModel,
        *,
        tolerance: float,
        sample_ids: Sequence[int],
    ) -> None:
        self._generator, self._base, self._tolerance = generator, base, tolerance
        self._sample = Probe(token_ids=tuple(sample_ids), prompt_tokens=1, logprobs=())

    async def check(
        self, name: str, model: ServedModel, lora: LoraWeights | None, probes: Sequence[Probe]
    ) -> None:
        """Raises AdapterRefused: adapter_mismatch, adapter_no_effect or adapter_invalid."""
        tried = list(probes) or [self._sample]
        for probe in tried:
            self._check_form(name, probe, model, trained=bool(probes))
        served = await asyncio.gather(*(self._score(probe, model, lora, name) for probe in tried))
        if probes:
            self._check_equal(name, probes, served)
        base = await asyncio.gather(
            *(self._score(probe, self._base, None, name) for probe in tried)
        )
        effect = max(
            abs(a - b)
            for ours, plain in zip(served, base, strict=True)
            for a, b in zip(ours, plain, strict=True)
        )
        if not effect > _NO_EFFECT:
            raise AdapterRefused(
                "adapter_no_effect",
                f"Adapter {name!r} changes nothing: its log-probs are within {effect:.1e} of the "
                "base model's. Train it for more steps or at a higher learning rate.",
            )

    def _check_form(self, name: str, probe: Probe, model: ServedModel, *, trained: bool) -> None:
        tokens = len(probe.token_ids)
        smallest = min(self._base.vocabulary, model.vocabulary)
        if (
            probe.prompt_tokens >= tokens
            or tokens > min(self._base.context_length, model.context_length)
            or not all(0 <= token < smallest for token in probe.token_ids)
            or (trained and len(probe.logprobs) != tokens - probe.prompt_tokens)
        ):
            raise AdapterRefused(
                "adapter_invalid",
                f"Adapter {name!r} has a probe that does not fit this model ({tokens} tokens).",
            )

    def _check_equal(
        self, name: str, probes: Sequence[Probe], served: Sequence[Sequence[float]]
    ) -> None:
        differences = [
            (abs(ours - trained), number, probe.prompt_tokens + at, ours, trained)
            for number, (probe, row) in enumerate(zip(probes, served, strict=True))
            for at, (ours, trained) in enumerate(zip(row, probe.logprobs, strict=True))
        ]
        worst, number, at, ours, trained = max(differences)
        if not worst <= self._tolerance:
            raise AdapterRefused(
                "adapter_mismatch",
                f"Adapter {name!r} does not answer as it was trained: at token {at} of probe "
                f"{number} the log-prob is {ours:.4f}, in training it was {trained:.4f}; the "
                f"difference {worst:.4f} is above the tolerance {self._tolerance:g}. Serve it with "
                "the base model revision it was trained on, or train it again.",
            )

    async def _score(
        self, probe: Probe, model: ServedModel, lora: LoraWeights | None, name: str
    ) -> list[float]:
        """The log-probs of the probe's completion, as a client would be told them."""
        request = SequenceRequest(
            model=model,
            lora=lora,
            prompt_ids=probe.token_ids,
            max_tokens=0,
            logprobs=0,
            score_prompt=True,
            ahead=True,
        )
        events = EventQueue()
        self._generator.submit(request, events.sink(0))
        _, event = await events.get()
        if isinstance(event, Failed):
            if isinstance(event.error, GenerationFailed) and event.error.code == "model_diverged":
                raise AdapterRefused("adapter_diverged", f"Adapter {name!r}: {event.error}")
            raise event.error
        assert isinstance(event, PromptScored)
        scores = event.scores[probe.prompt_tokens :]
        return [score.logprob for score in scores if score is not None]
