"""The engine's thread by itself: whoever joins, leaves or breaks, the rest say their own."""

import queue
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from engine.infer.alone import Alone
from engine.infer.batching import shapes_for_rows
from engine.infer.errors import GenerationFailed
from engine.infer.generator import Event, Failed, Output, SequenceRequest, Ticket
from engine.infer.lora import LoraWeights, packed
from engine.infer.metrics import Metrics
from engine.infer.model import ServedModel, load_model
from engine.infer.sampling import GREEDY, Sampling
from engine.infer.scheduler import Scheduler
from engine.infer.sequence import Sequence
from engine.infer.virtual_tokens import VirtualTokens
from tests.engine.infer.world import write_base

CONTEXT = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return model_of("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def loras(model: ServedModel) -> list[LoraWeights | None]:
    return [None, *(lora_for(model, rank=rank, seed=rank) for rank in (1, 4, 16))]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = write_base(tmp_path_factory.mktemp("tokenizer"))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def model_of(architecture: str, folder: Path) -> ServedModel:
    base = write_base(folder, architecture, context=CONTEXT)
    model = load_model("base", base, torch.device("cpu"))
    model.rows = shapes_for_rows(model)
    assert model.rows is not None
    return model


def lora_for(model: ServedModel, *, rank: int, seed: int, scale: float = 1.0) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    layout = model.layers.layout
    pairs = {
        name: (
            torch.randn(rank, n_in, generator=generator) / n_in**0.5,
            torch.randn(n_out, rank, generator=generator) / n_in**0.5,
        )
        for name, (_, n_in, n_out) in layout.places.items()
    }
    return packed(pairs, layout, dict.fromkeys(pairs, scale))


@dataclass
class Asked:
    """A sequence that was handed in, and what came of it."""

    request: SequenceRequest
    events: "queue.Queue[Event]" = field(default_factory=queue.Queue)
    ticket: Ticket = field(default_factory=Ticket)

    def answer(self) -> list[int]:
        """Its tokens, once it is over. Raises what it failed with."""
        tokens: list[int] = []
        while True:
            event = self.events.get(timeout=60)
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Output):
                tokens += [] if event.token_id is None else [event.token_id]
                if event.finish:
                    return tokens


class Engine:
    """A scheduler of one model."""

    def __init__(self, scheduler: Scheduler, model: ServedModel, metrics: Metrics) -> None:
        self.scheduler, self._model, self.metrics = scheduler, model, metrics

    def ask(self, **request: Any) -> Asked:
        asked = Asked(SequenceRequest(model=self._model, **{"lora": None, **request}))
        asked.ticket = self.scheduler.submit(asked.request, asked.events.put)
        return asked

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is asked meanwhile is let in at once."""
        with self.scheduler._wake:
            yield


@contextmanager
def running(model: ServedModel, tokenizer: Tokenizer, **options: Any) -> Iterator[Engine]:
    metrics = Metrics()
    given = {"threads": 1, "max_running": 6, "prefill_chunk": 64, "kv_tokens": 6 * 257, **options}
    scheduler = Scheduler(tokenizer, metrics, **given)
    scheduler.start()
    try:
        yield Engine(scheduler, model, metrics)
    finally:
        scheduler.stop()


def alone(request: SequenceRequest, tokenizer: Tokenizer) -> list[int]:
    """What the model says to it in forwards of its own."""
    asked = Asked(request)
    turn = Alone(Sequence(request, asked.events.put, tokenizer), CONTEXT)
    with torch.inference_mode():
        while turn.step():
            pass
    return asked.answer()


def a_prompt(chance: random.Random, length: int) -> tuple[int, ...]:
    return tuple(chance.randrange(2, 400) for _ in range(length))


@pytest.mark.parametrize("seed", range(4))
def test_whoever_joins_leaves_or_is_cancelled_the_others_say_what_they_say_alone(
    seed: int, model: ServedModel, loras: list[LoraWeights | None], tokenizer: Tokenizer
) -> None:
    chance = random.Random(seed)
    system = a_prompt(chance, 70)
    options = {
        "max_running": chance.choice([3, 8]),
        "prefill_chunk": chance.choice([5, 33, 128]),
        "kv_tokens": chance.choice([257, 600, 8 * 257]),
    }
    asked: list[Asked] = []
    with running(model, tokenizer, **options) as engine:
        for _ in range(24):
            prompt = a_prompt(chance, chance.choice([1, 2, 9, 31, 64, 90]))
            shared = chance.random() < 0.3
            scored = chance.random() < 0.2
            tokens = chance.choice([0, 1, 7, 30, 80])
            lora = chance.choice(loras)
            asked.append(
                engine.ask(
                    prompt_ids=(system + prompt)[:150] if shared else prompt,
                    max_tokens=tokens,
                    lora=lora,
                    scope=str(lora and lora.rank),
                    score_prompt=scored,
                    logprobs=2 if scored else None,
                    sampling=GREEDY if chance.random() < 0.7 else Sampling(seed=seed, top_p=0.9),
                    tenant=chance.choice("ab"),
                )
            )
            if chance.random() < 0.25:
                chance.choice(asked).ticket.cancel()
        found = [each.answer() for each in asked if not each.ticket.cancelled]
    kept = [each.request for each in asked if not each.ticket.cancelled]
    assert found == [alone(request, tokenizer) for request in kept]


def test_a_prompt_that_is_only_read_leaves_the_others_what_was_fed_with_it(
    model: ServedModel, tokenizer: Tokenizer
) -> None:
    chance = random.Random(0)
    with running(model, tokenizer, prefill_chunk=200) as engine:
        with engine.held():
            sizes = [(20, 0), (18, 8), (19, 8), (17, 8)]
            asked = [
                engine.ask(prompt_ids=a_prompt(chance, length), max_tokens=tokens)
                for length, tokens in sizes
            ]
        answers = [each.answer() for each in asked]
    assert answers == [alone(each.request, tokenizer) for each in asked]


@pytest.mark.parametrize("chunk", [16, 64, 1000], ids=lambda n: f"by {n}")
def test_several_that_diverge_at_once_leave_nothing_to_whoever_comes_next(
    chunk: int, model: ServedModel, tokenizer: Tokenizer
) -> None:
    chance = random.Random(0)
    broken = lora_for(model, rank=4, seed=1, scale=1e30)  # finite, and what comes of it is not
    with running(model, tokenizer, prefill_chunk=chunk) as engine:
        for _ in range(3):
            with engine.held():
                failing = [
                    engine.ask(prompt_ids=a_prompt(chance, length), max_tokens=4, lora=broken)
                    for length in (60, 60, 60, 60)
                ]
            for each in failing:
                with pytest.raises(GenerationFailed, match="diverged"):
                    each.answer()
            with engine.held():
                lengths = (200, 5, 10, 80, 20, 30)
                asked = [
                    engine.ask(prompt_ids=a_prompt(chance, length), max_tokens=10)
                    for length in lengths
                ]
            answers = [each.answer() for each in asked]
            assert answers == [alone(each.request, tokenizer) for each in asked]


@pytest.mark.parametrize("architecture", ["gpt2", "phi"])
def test_rows_of_unlike_lengths_share_a_forward_at_the_end_of_the_context(
    architecture: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """A model may know no position behind its context, where padding is kept."""
    model = model_of(architecture, tmp_path)
    chance = random.Random(0)
    with running(model, tokenizer, prefill_chunk=1000) as engine:
        with engine.held():
            sizes = [(CONTEXT - 6, 6), (3, 9), (40, 9), (CONTEXT - 1, 1)]
            asked = [
                engine.ask(prompt_ids=a_prompt(chance, length), max_tokens=tokens)
                for length, tokens in sizes
            ]
        answers = [each.answer() for each in asked]
    assert answers == [alone(each.request, tokenizer) for each in asked]


def _wrong_heads(model: ServedModel) -> dict[str, Any]:
    states = torch.zeros(1, 3, 4, 12)  # of 3 heads, where the model has 2

    def fill(_: Any, cache: Any) -> None:
        for layer in range(len(model.rows or ())):
            cache.update(states, states, layer)

    return {"virtual_tokens": VirtualTokens(4, fill)}


class _Broken(Sampling):
    """Fails where tokens are chosen."""

    @property
    def is_greedy(self) -> bool:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "broken",
    [_wrong_heads, lambda _: {"sampling": _Broken()}],
    ids=["as it joins", "as it goes on"],
)
def test_a_request_that_breaks_does_not_end_the_engine(
    broken: Callable[[ServedModel], dict[str, Any]], model: ServedModel, tokenizer: Tokenizer
) -> None:
    with running(model, tokenizer) as engine:
        failing = engine.ask(prompt_ids=(5, 6, 7), max_tokens=3, **broken(model))
        with pytest.raises(GenerationFailed, match="failed on this request"):
            failing.answer()
        later = engine.ask(prompt_ids=(5, 6, 7), max_tokens=3)
        assert later.answer() == alone(later.request, tokenizer)
        assert engine.scheduler.alive


def test_memory_that_is_not_to_be_had_fails_the_request_and_not_the_engine(
    model: ServedModel, tokenizer: Tokenizer
) -> None:
    with running(model, tokenizer, kv_tokens=1 << 56) as engine:
        with pytest.raises(GenerationFailed, match="failed on this request"):
            engine.ask(prompt_ids=(5, 6, 7), max_tokens=3).answer()
        assert engine.scheduler.alive


def test_a_probe_that_needs_much_room_is_not_passed_by_those_that_need_little(
    model: ServedModel, tokenizer: Tokenizer
) -> None:
    chance = random.Random(0)
    with running(model, tokenizer, max_running=4, kv_tokens=4 * 65) as engine:
        with engine.held():
            before = [engine.ask(prompt_ids=(5, 6, 7), max_tokens=20) for _ in range(2)]
        assert isinstance(before[0].events.get(timeout=60), Output)
        with engine.held():
            probe = engine.ask(
                prompt_ids=a_prompt(chance, 200), max_tokens=0, score_prompt=True, ahead=True
            )
            after = [engine.ask(prompt_ids=(5, 6, 7), max_tokens=40) for _ in range(40)]
        assert probe.answer() == []
        assert all(each.events.empty() for each in after[8:])
        for each in (*before, *after):
            each.answer()
