"""Served equals trained, for reward models: their trainer's scores, by the path that serves."""

from collections.abc import Sequence

from engine.infer.errors import AdapterRefused, GenerationFailed
from engine.infer.events import EventQueue
from engine.infer.folder import ScoreProbe
from engine.infer.generator import Failed, Generator, Scored, ScoreRequest
from engine.infer.loader import Served

_NO_DIFFERENCE = 1e-6


class ScoreVerifier:
    """Checks reward adapters against the scores in their manifests.

    `tolerance` is the largest difference taken for noise, of scores within ±1; of a larger score it
    is that part. `sample_ids` and their first half stand in where a manifest has no scores.
    """

    def __init__(
        self, generator: Generator, *, tolerance: float, sample_ids: Sequence[int]
    ) -> None:
        self._generator, self._tolerance = generator, tolerance
        self._sample = [tuple(sample_ids), tuple(sample_ids[: len(sample_ids) // 2])]

    async def check(self, adapter: Served, probes: Sequence[ScoreProbe]) -> None:
        """Raises AdapterRefused: adapter_mismatch, adapter_no_effect, adapter_diverged or
        adapter_invalid."""
        tried = [probe.token_ids for probe in probes] or self._sample
        for token_ids in tried:
            _check_form(adapter, token_ids)
        served = await self._scores(adapter, tuple(tried))
        if probes:
            self._check_equal(adapter.name, probes, served)
        spread = max(served) - min(served)
        if len(set(tried)) > 1 and not spread > _NO_DIFFERENCE:
            raise AdapterRefused(
                "adapter_no_effect",
                f"Adapter {adapter.name!r} tells no answers apart: its scores of {len(served)} "
                f"texts are within {spread:.1e} of each other. Train it for more steps or at "
                "another learning rate.",
            )

    def _check_equal(
        self, name: str, probes: Sequence[ScoreProbe], served: Sequence[float]
    ) -> None:
        for number, (probe, ours) in enumerate(zip(probes, served, strict=True)):
            difference = abs(ours - probe.score)
            allowed = self._tolerance * max(1.0, abs(probe.score))
            if not difference <= allowed:
                raise AdapterRefused(
                    "adapter_mismatch",
                    f"Adapter {name!r} does not score as it was trained: probe {number} gets "
                    f"{ours:.4f}, in training it was {probe.score:.4f}; the difference "
                    f"{difference:.4f} is above the tolerance {allowed:g}. Serve it with the base "
                    "model revision it was trained on, or train it again.",
                )

    async def _scores(
        self, adapter: Served, inputs: tuple[tuple[int, ...], ...]
    ) -> tuple[float, ...]:
        """As a client would be told them."""
        assert adapter.head is not None
        request = ScoreRequest(adapter.model, adapter.lora, adapter.head, inputs, ahead=True)
        events = EventQueue()
        self._generator.submit(request, events.sink(0))
        _, event = await events.get()
        if isinstance(event, Failed):
            if isinstance(event.error, GenerationFailed) and event.error.code == "model_diverged":
                text = f"Adapter {adapter.name!r}: {event.error}"
                raise AdapterRefused("adapter_diverged", text)
            raise event.error
        assert isinstance(event, Scored)
        return event.scores


def _check_form(adapter: Served, token_ids: Sequence[int]) -> None:
    model = adapter.model
    fits = 0 < len(token_ids) <= model.context_length
    if not fits or not all(0 <= token < model.vocabulary for token in token_ids):
        raise AdapterRefused(
            "adapter_invalid",
            f"Adapter {adapter.name!r} has a probe of {len(token_ids)} tokens that does not fit "
            "this model.",
        )
