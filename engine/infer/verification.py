"""Served equals trained: an adapter's probes are recomputed by the path that will serve it."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from engine.infer.errors import AdapterRefused, GenerationFailed
from engine.infer.events import EventQueue
from engine.infer.folder import Probe
from engine.infer.generator import Failed, Generator, PromptScored, SequenceRequest
from engine.infer.loader import Served

_NO_EFFECT = 1e-6
_MAX_KNOWN = 256


class Verifier:
    """Checks adapters against their probes, and that they differ from the base.

    `tolerance` is the largest difference of a log-prob taken for noise. `sample_ids` stand in for
    the probes of an adapter that was made elsewhere and has none.
    """

    def __init__(
        self,
        generator: Generator,
        base: Served,
        *,
        tolerance: float,
        sample_ids: Sequence[int],
    ) -> None:
        self._generator, self._base, self._tolerance = generator, base, tolerance
        self._base_known: OrderedDict[Probe, list[float]] = OrderedDict()
        self._sample = Probe(token_ids=tuple(sample_ids), prompt_tokens=1, logprobs=())

    async def check(self, adapter: Served, probes: Sequence[Probe]) -> None:
        """Raises AdapterRefused: adapter_mismatch, adapter_no_effect or adapter_invalid."""
        name, tried = adapter.name, list(probes) or [self._sample]
        for probe in tried:
            self._check_form(adapter, probe, trained=bool(probes))
        served, base = await asyncio.gather(
            asyncio.gather(*(self._score(probe, adapter, name) for probe in tried)),
            asyncio.gather(*(self._base_scores(probe, name) for probe in tried)),
        )
        if probes:
            self._check_equal(name, probes, served)
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

    def _check_form(self, adapter: Served, probe: Probe, *, trained: bool) -> None:
        tokens, base, model = len(probe.token_ids), self._base.model, adapter.model
        smallest = min(base.vocabulary, model.vocabulary)
        virtual = adapter.virtual_tokens.count if adapter.virtual_tokens else 0
        if (
            probe.prompt_tokens >= tokens
            or tokens + virtual > min(base.context_length, model.context_length)
            or not all(0 <= token < smallest for token in probe.token_ids)
            or (trained and len(probe.logprobs) != tokens - probe.prompt_tokens)
        ):
            raise AdapterRefused(
                "adapter_invalid",
                f"Adapter {adapter.name!r} has a probe of {tokens} tokens that does not fit this "
                "model.",
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

    async def _base_scores(self, probe: Probe, name: str) -> list[float]:
        """Kept, as adapters without probes of their own, or of one run, are tried with the same."""
        found = self._base_known.get(probe)
        if found is None:
            found = self._base_known[probe] = await self._score(probe, self._base, name)
            while len(self._base_known) > _MAX_KNOWN:
                self._base_known.popitem(last=False)
        return found

    async def _score(self, probe: Probe, served: Served, name: str) -> list[float]:
        """The log-probs of the probe's completion, as a client would be told them."""
        request = SequenceRequest(
            model=served.model,
            lora=served.lora,
            virtual_tokens=served.virtual_tokens,
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
