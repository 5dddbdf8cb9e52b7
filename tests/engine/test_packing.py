"""Packing by lengths alone, and what each epoch takes of which dataset."""

import random
from collections import Counter
from itertools import islice

import pytest

from engine.epochs import Epochs, Part, learned_places, parts_of, replayed, taken_by_weight
from engine.packing import pack
from engine.spec import SftMethod

ROOM = 64


def test_each_example_is_in_one_row_and_no_row_is_too_long() -> None:
    lengths = [random.Random(0).randint(2, ROOM) for _ in range(500)]
    rows = pack(lengths, ROOM)
    assert sorted(place for row in rows for place in row) == list(range(500))
    assert max(sum(lengths[place] for place in row) for row in rows) <= ROOM
    # Best fit decreasing needs at most 11/9 of the fewest rows, and the tokens need so many.
    assert len(rows) <= sum(lengths) / ROOM * 11 / 9 + 1


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [([], []), ([64], [[0]]), ([40, 30, 24, 34], [[0, 2], [3, 1]]), ([2] * 3, [[0, 1, 2]])],
)
def test_the_longest_comes_first_and_into_the_fullest_row(
    lengths: list[int], rows: list[list[int]]
) -> None:
    assert pack(lengths, ROOM) == rows


def test_weights_share_as_many_rows_as_there_are() -> None:
    assert taken_by_weight([80, 20], [1.0, 1.0]) == [50, 50]
    assert taken_by_weight([10, 10, 10], [1.0, 1.0, 1.0]) == [10, 10, 10]
    assert sum(taken_by_weight([7, 11, 5], [0.3, 0.31, 2.0])) == 23
    assert taken_by_weight([100, 2], [1000.0, 1.0]) == [102, 1]  # never none at all
    assert (replayed(100, 0.1), replayed(3, 0.01)) == (10, 1)


def epochs(*, room: int | None = None, seed: int = 5) -> Epochs:
    lengths = [[10] * 7, [20] * 30]
    return Epochs(parts_of(["a", "b"], lengths, [2.0, 1.0], replays=False), seed, room=room)


def test_a_dataset_is_repeated_or_read_on_evenly_over_the_epochs() -> None:
    """37 rows an epoch: 25 of the 7 of a, 12 of the 30 of b."""
    mixed = epochs()
    seen: Counter[int] = Counter()
    for epoch in range(5):
        drawn = mixed.drawn(epoch)
        assert (sum(p < 7 for p in drawn), sum(p >= 7 for p in drawn)) == (25, 12)
        seen.update(drawn)
        for part in (range(7), range(7, 37)):
            times = [seen[place] for place in part]
            assert max(times) - min(times) <= 1
    assert set(seen) == set(range(37))
    assert mixed.drawn(0)[25:] != mixed.drawn(1)[25:]


def test_the_order_is_the_seed_s_and_each_epoch_has_its_own() -> None:
    assert epochs().rows(3) == epochs().rows(3)
    assert epochs().rows(3) != epochs(seed=6).rows(3)
    assert epochs().rows(0) != epochs().rows(1)


@pytest.mark.parametrize("room", [None, ROOM])
def test_a_run_has_the_steps_that_are_told_of_it(room: int | None) -> None:
    method = SftMethod(num_train_epochs=2.5, per_device_batch_size=4, max_length=ROOM)
    mixed = epochs(room=room)
    run = list(mixed.run(method))
    steps = [mixed.steps_of(epoch, method) for epoch in range(3)]
    assert [row for step in run[: steps[0]] for row in step] == mixed.rows(0)
    assert [row for step in run[steps[0] :][: steps[1]] for row in step] == mixed.rows(1)
    assert len(run) == mixed.steps(method) == steps[0] + steps[1] + -(-steps[2] // 2)
    assert {len(step) for step in run[: steps[0] - 1]} == {4}
    bound = method.model_copy(update={"max_steps": 30})
    assert list(islice(mixed.run(bound), len(run))) == run
    assert mixed.steps(bound) == len(list(mixed.run(bound))) == 30


def test_packed_rows_are_fewer_and_hold_the_same_examples() -> None:
    loose, packed = epochs(), epochs(room=ROOM)
    assert Counter(p for row in packed.rows(1) for p in row) == Counter(loose.drawn(1))
    assert packed.count(1) == len(packed.rows(1)) < loose.count(1) / 2


def test_what_is_held_out_of_one_dataset_is_learned_from_none() -> None:
    keys = [[1, 2, 3, 1], [3, 4, 2]]
    assert learned_places(keys, [{1}, {0}]) == [[0, 3], [1]]


def test_a_dataset_that_is_read_many_times_an_epoch_is_warned_of() -> None:
    assert Part("ds_1", [1, 1], 8, 4.0).warning() is None
    lengths, sampled = [[9] * 100, [9] * 2], [50.0, 1.0]
    _, small = parts_of(["ds_1", "ds_2"], lengths, [1.0, 0.01], replays=False, scales=sampled)
    assert "Dataset ds_2 is read 25.0 times an epoch" in str(small.warning())
