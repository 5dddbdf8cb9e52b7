"""Masks over a vocabulary: what they let through is JSON that satisfies the schema."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from engine.infer.errors import RequestInvalid
from engine.infer.grammar import Grammar, Vocabulary
from engine.infer.grammars import Grammars
from engine.infer.sampling import GREEDY, Sampler, Sampling, choose
from tests import clock
from tests.engine.infer.schemas import HOSTILE, OPTIONAL, SCHEMAS, check
from tests.engine.infer.world import write_tokenizer

SHIPPED = Path(__file__).parents[3] / "examples/models/luthier-tiny/tokenizer.json"
STOP = 1


@pytest.fixture(scope="module", params=["own", "shipped"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "shipped":
        return Tokenizer.from_file(str(SHIPPED))
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Iterator[Grammars]:
    grammars = Grammars(tokenizer)
    yield grammars
    grammars.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("small")
    write_tokenizer(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def compiled(grammars: Grammars, schema: dict[str, object]) -> Grammar:
    async def get() -> Grammar:
        return await grammars.get(schema, "schema")  # type: ignore[arg-type]  # it is JSON

    return asyncio.run(get())


def written(grammar: Grammar, tokenizer: Tokenizer, seed: int, size: int) -> str | None:
    """What even odds for every allowed token write; None where it would not end."""
    sampler = Sampler(Sampling(seed=seed), 0, (), grammar.matcher([STOP]))
    tokens: list[int] = []
    while len(tokens) < 600 and not sampler.is_over:
        token = choose(torch.zeros(1, size), [sampler])[0]
        assert sampler.fault is None
        if token == STOP:
            break
        tokens.append(token)
        sampler.note(token)
    else:
        if not sampler.is_over:
            return None
    text: str = tokenizer.decode(tokens, skip_special_tokens=False)
    return text


@pytest.mark.parametrize("name", [*SCHEMAS, "optional"])
def test_every_walk_through_the_masks_satisfies_the_schema(
    name: str, grammars: Grammars, tokenizer: Tokenizer
) -> None:
    schema = {**SCHEMAS, "optional": OPTIONAL}[name]
    grammar, size = compiled(grammars, schema), tokenizer.get_vocab_size()
    texts = [written(grammar, tokenizer, seed, size) for seed in range(12)]
    whole = [text for text in texts if text is not None]
    assert len(whole) >= 6
    for text in whole:
        check(text, schema)


def test_a_bare_number_may_end_or_go_on(grammars: Grammars, tokenizer: Tokenizer) -> None:
    matcher = compiled(grammars, {"type": "integer", "minimum": 0}).matcher([STOP])
    one = tokenizer.token_to_id("1")
    logits = torch.zeros(tokenizer.get_vocab_size())
    assert matcher.masked(logits)[STOP] == -torch.inf
    matcher.accept(one)
    masked = matcher.masked(logits)
    assert (masked[STOP], masked[one]) == (0, 0)
    assert not matcher.is_over


def test_a_model_with_more_rows_than_tokens_never_gets_one_of_those(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    size = tokenizer.get_vocab_size() + 70
    masked = compiled(grammars, {"type": "object"}).matcher().masked(torch.zeros(size))
    assert bool((masked[-70:] == -torch.inf).all())
    assert bool((masked == 0).any())


def test_the_order_of_properties_is_the_schemas(grammars: Grammars, tokenizer: Tokenizer) -> None:
    for names in (["b", "a"], ["a", "b"]):
        schema = {
            "type": "object",
            "properties": {name: {"const": 1} for name in names},
            "required": names,
            "additionalProperties": False,
        }
        text = written(compiled(grammars, schema), tokenizer, 1, tokenizer.get_vocab_size())
        assert text is not None
        assert list(check(text, schema)) == names


def test_a_token_may_be_a_piece_of_a_character(small: Tokenizer) -> None:
    grammar = Vocabulary(small).compile('{"enum": ["🦊", "🐢"]}', "schema")
    assert len(small.encode("🐼").ids) > 1
    texts = {written(grammar, small, seed, small.get_vocab_size()) for seed in range(20)}
    assert texts == {'"🦊"', '"🐢"'}


def test_rows_beside_a_kept_one_are_chosen_as_if_alone(small: Tokenizer) -> None:
    grammar = Vocabulary(small).compile('{"type": "object"}', "schema")
    torch.manual_seed(0)
    logits = torch.randn(4, small.get_vocab_size())
    before = logits.clone()
    settings = [GREEDY, Sampling(seed=3), Sampling(seed=4, top_p=0.9), Sampling(seed=5)]
    alone = [choose(logits[i][None], [Sampler(each, 0)])[0] for i, each in enumerate(settings)]
    samplers = [Sampler(each, 0) for each in settings[:3]]
    samplers.append(Sampler(settings[3], 0, (), grammar.matcher()))
    together = choose(logits, samplers)
    assert together[:3] == alone[:3]
    assert small.id_to_token(together[3])[0] == "{"
    assert torch.equal(logits, before)


def test_penalties_and_nuclei_stay_within_the_grammar(small: Tokenizer) -> None:
    grammar = Vocabulary(small).compile('{"const": [1, 1, 1, 1, 1, 1]}', "schema")
    sampling = Sampling(1.9, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=9.0, seed=2)
    sampler = Sampler(sampling, 0, (), grammar.matcher())
    torch.manual_seed(1)
    tokens: list[int] = []
    while not sampler.is_over:
        tokens += choose(torch.randn(1, small.get_vocab_size()) * 9, [sampler])
        sampler.note(tokens[-1])
    check(small.decode(tokens), {"const": [1] * 6})


def test_stop_tokens_that_are_needed_in_the_document_end_it_with_an_error(
    small: Tokenizer,
) -> None:
    size = small.get_vocab_size()
    opening = [i for i in range(size) if small.decode([i])[:1] == "{"]
    matcher = Vocabulary(small).compile('{"type": "object"}', "here").matcher(opening)
    matcher.masked(torch.zeros(size))
    assert matcher.fault is not None
    assert (matcher.fault.code, matcher.fault.param) == ("schema_unsatisfiable", "here")


def test_a_schema_is_compiled_once_and_forgotten_when_many_others_came(small: Tokenizer) -> None:
    async def scene() -> None:
        grammars = Grammars(small, kept=3)
        first, again = await asyncio.gather(
            grammars.get({"const": "a"}, "x"), grammars.get({"const": "a"}, "x")
        )
        assert first is again
        for i in range(3):
            await grammars.get({"const": i}, "x")
        assert await grammars.get({"const": "a"}, "x") is not first
        assert len(grammars._kept) == 3
        grammars.close()

    asyncio.run(scene())


def test_a_schema_whose_room_is_spent_gets_new_room(small: Tokenizer) -> None:
    schema = {"type": "string", "pattern": "^(a|b|c)*a(a|b|c|d){30}$"}  # 2^30 states
    logits = torch.zeros(small.get_vocab_size())

    def spend(grammar: Grammar) -> None:
        for seed in range(500):
            matcher, chance = grammar.matcher(), random.Random(seed)
            while not matcher.is_over:
                masked = matcher.masked(logits)
                if matcher.fault is not None:
                    break
                matcher.accept(chance.choice(masked.isfinite().nonzero()[:, 0].tolist()))
            if matcher.fault is not None:
                assert matcher.fault.code == "schema_too_complex"
                return
        raise AssertionError("the states were never too many")

    async def scene() -> None:
        grammars = Grammars(small, max_states=500)
        first = await grammars.get(schema, "here")
        assert await grammars.get(schema, "here") is first
        spend(first)
        second = await grammars.get(schema, "here")
        assert second is not first
        assert bool(second.matcher().masked(logits).isfinite().any())
        grammars.close()

    asyncio.run(scene())


def test_new_schemas_wait_in_bounds(small: Tokenizer) -> None:
    async def scene() -> None:
        grammars = Grammars(small)
        asked = [grammars.get({"const": i}, "x") for i in range(12)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [each for each in answers if isinstance(each, RequestInvalid)]
        assert {(each.code, each.status) for each in refused} == {("too_many_schemas", 429)}
        assert len(refused) == 4
        assert await grammars.get({"const": 11}, "x")  # there is room again
        grammars.close()

    asyncio.run(scene())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_schema_that_cannot_be_kept_is_refused_soon_and_the_loop_goes_on(
    name: str, small: Tokenizer
) -> None:
    schema, said = HOSTILE[name]

    async def scene() -> tuple[RequestInvalid, float]:
        grammars, pauses = Grammars(small), [0.0]
        refusal = asyncio.ensure_future(grammars.get(schema, "here"))
        begun = last = clock.now()
        while not refusal.done():
            await asyncio.sleep(0.01)
            pauses.append(clock.now() - last)
            last = clock.now()
        grammars.close()
        error = refusal.exception()
        assert isinstance(error, RequestInvalid)
        assert clock.now() - begun < 20
        return error, max(pauses)

    error, pause = asyncio.run(scene())
    assert (error.status, error.code) == (422, "schema_invalid")
    assert (error.param or "").split(".")[0] == "here"
    assert said in str(error) or said in (error.param or "")
    assert pause < 2


def test_a_matcher_that_gets_too_slow_or_too_large_ends_with_an_error(small: Tokenizer) -> None:
    """What the trial would have refused, put before the engine."""
    schema = '{"type": "string", "pattern": "^((a{1000}){1000})$"}'
    matcher = Vocabulary(small).compile(schema, "here").matcher([STOP])
    random.seed(0)
    for _ in range(50):
        masked = matcher.masked(torch.zeros(small.get_vocab_size()))
        if matcher.fault is not None:
            break
        matcher.accept(random.choice(masked.isfinite().nonzero()[:, 0].tolist()))
    assert matcher.fault is not None
    assert (matcher.fault.code, matcher.fault.status) == ("schema_too_complex", 422)
