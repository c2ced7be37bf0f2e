import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.trainers.batches import collate, evaluation_batches, largest_batch, padding_share, training_batches
from autopeft.trainers.tokens import TokenizedSplit

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=300).map(np.array)


def split_of(rows: list[list[int]], starts: list[int] | None = None, labels: list[int] | None = None) -> TokenizedSplit:
    return TokenizedSplit(
        ids=np.array([token for row in rows for token in row], dtype=np.int32),
        offsets=np.cumsum([0, *map(len, rows)]),
        starts=np.array(starts or [0] * len(rows)),
        labels=None if labels is None else np.array(labels),
    )


@given(LENGTHS, st.integers(1, 17), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_has_every_row_once_in_full_batches_but_one(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> None:
    batches = training_batches(lengths, batch_size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    sizes = sorted(map(len, batches))
    assert sizes[1:] == [batch_size] * (len(sizes) - 1)
    again = training_batches(lengths, batch_size, seed=seed, epoch=epoch)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@given(LENGTHS, st.integers(1, 17))
def test_the_largest_batch_is_the_same_size_for_every_seed_and_epoch(lengths: np.ndarray, batch_size: int) -> None:
    sizes = set()
    for seed, epoch in ((0, 0), (1, 0), (0, 1), (7, 3)):
        batches = training_batches(lengths, batch_size, seed=seed, epoch=epoch)
        rows = batches[largest_batch(lengths, batches)]
        sizes.add((len(rows), int(lengths[rows].max())))
    if len(lengths) >= batch_size:
        assert sizes == {(batch_size, int(lengths.max()))}


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    lengths = np.arange(1, 100)
    orders = {
        tuple(np.concatenate(training_batches(lengths, 8, seed=seed, epoch=epoch)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_bucketing_leaves_far_less_padding_than_chance() -> None:
    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(3.0, 0.7, 3000).astype(int), 3, 128)
    bucketed = padding_share(lengths, training_batches(lengths, 32, seed=0, epoch=0))
    order = chance.permutation(3000)
    shuffled = padding_share(lengths, [order[i : i + 32] for i in range(0, 3000, 32)])
    assert bucketed < 0.1 < 0.4 < shuffled


@given(LENGTHS, st.integers(1, 17))
def test_evaluation_runs_from_long_to_short(lengths: np.ndarray, batch_size: int) -> None:
    batches = evaluation_batches(lengths, batch_size)
    ordered = lengths[np.concatenate(batches)]
    assert list(ordered) == sorted(lengths, reverse=True)


def test_rows_are_padded_on_the_right_to_the_longest_of_their_batch() -> None:
    split = split_of([[5, 6], [7, 8, 9], [1, 2, 3, 4]], labels=[0, 1, 1])
    batch = collate(split, np.array([1, 0]), pad_id=99)
    assert batch.ids_BT.tolist() == [[7, 8, 9], [5, 6, 99]]
    assert batch.mask_BT.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.targets.tolist() == [1, 0]
    assert batch.types_BT is None
    assert batch.tokens == 5


def test_segments_are_padded_with_the_first() -> None:
    split = TokenizedSplit(
        ids=np.array([1, 2, 3], dtype=np.int32),
        offsets=np.array([0, 2, 3]),
        starts=np.zeros(2, dtype=np.int64),
        types=np.array([0, 1, 1], dtype=np.uint8),
        labels=np.array([0, 1]),
    )
    types = collate(split, np.array([0, 1]), pad_id=0).types_BT
    assert types is not None
    assert types.tolist() == [[0, 1], [1, 0]]


@given(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 8)), min_size=1, max_size=6))
def test_next_token_targets_equal_a_loop_s(rows: list[tuple[int, int]]) -> None:
    tokens = [[100 * i + t for t in range(n)] for i, (n, _) in enumerate(rows)]
    starts = [start for _, start in rows]
    batch = collate(split_of(tokens, starts), np.arange(len(rows)), pad_id=0)
    expected = np.full(batch.ids_BT.shape, -100)
    for i, row in enumerate(tokens):
        for position in range(len(row) - 1):
            if position + 1 >= starts[i]:
                expected[i, position] = row[position + 1]
    assert np.array_equal(batch.targets, expected)


def test_taking_rows_keeps_everything_aligned() -> None:
    split = split_of([[5, 6], [7, 8, 9], [1]], starts=[1, 2, 0], labels=[0, 1, 2])
    taken = split.take(np.array([2, 1]))
    assert taken.ids.tolist() == [1, 7, 8, 9]
    assert taken.lengths.tolist() == [1, 3]
    assert taken.starts.tolist() == [0, 2]
    assert taken.labels is not None
    assert taken.labels.tolist() == [2, 1]
    assert len(taken) == 2
    with pytest.raises(IndexError):
        split.take(np.array([3]))
