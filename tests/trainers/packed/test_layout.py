import pytest
import torch

from autopeft.trainers.packed.chance import Chances
from autopeft.trainers.packed.groups import Size, grouped
from autopeft.trainers.packed.layout import Layout

RAGGED = Layout([2, 1, 3], [4, 2, 5])


def rows(*shape: int) -> torch.Tensor:
    return torch.arange(1.0, 1.0 + torch.Size(shape).numel()).view(shape)


def test_a_slot_sees_its_rows_up_to_the_end_of_its_longest() -> None:
    x = rows(6, 5, 3)
    parts = RAGGED.split(x)
    assert [tuple(part.shape) for part in parts] == [(2, 4, 3), (1, 2, 3), (3, 5, 3)]
    assert torch.equal(parts[1], x[2:3, :2])
    joined = RAGGED.join(parts)
    assert torch.equal(joined[2:3, :2], x[2:3, :2])
    assert not joined[2:3, 2:].any()


def test_tokens_side_by_side_are_taken_apart_as_rows_of_tokens_are() -> None:
    x = rows(6, 5, 3)
    flat = RAGGED.split(x.flatten(0, 1))
    assert all(torch.equal(mine, part.flatten(0, 1)) for mine, part in zip(flat, RAGGED.split(x), strict=True))
    assert torch.equal(RAGGED.join(flat).view(6, 5, 3), RAGGED.join(RAGGED.split(x)))


def test_a_vector_a_row_is_never_cut_even_where_it_is_as_wide_as_rows_are_long() -> None:
    pooled = rows(6, 5)
    assert [tuple(part.shape) for part in RAGGED.split(pooled)] == [(2, 5), (1, 5), (3, 5)]
    assert torch.equal(RAGGED.join(RAGGED.split(pooled)), pooled)
    assert [part.shape[1] for part in RAGGED.split(pooled.long())] == [4, 2, 5], "ids and masks are one a token"


def test_what_is_one_row_for_all_goes_to_all() -> None:
    positions = torch.arange(5)[None]
    assert [part.tolist() for part in RAGGED.split(positions)] == [[[0, 1, 2, 3]], [[0, 1]], [[0, 1, 2, 3, 4]]]


def test_gradients_come_together_from_all_slots() -> None:
    x = rows(6, 5, 3).requires_grad_(True)
    RAGGED.join([part * (slot + 1) for slot, part in enumerate(RAGGED.split(x))]).sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0, 0] == 1
    assert x.grad[2, 1, 0] == 2
    assert x.grad[2, 2, 0] == 0, "what a slot does not see has no gradient"
    assert x.grad[5, 4, 0] == 3


def test_containers_are_taken_apart_and_put_together() -> None:
    trees = RAGGED.split_tree(((rows(6, 5, 3),), {"mask": torch.ones(6, 5).long(), "flag": True, "none": None}))
    assert trees[1][1]["mask"].shape == (1, 2)
    assert trees[2][1]["flag"] is True
    assert RAGGED.join_trees(trees)[0][0].shape == (6, 5, 3)


def test_unlike_lengths_share_a_pass_only_where_padding_is_cheaper_than_launching(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = [Size((8, length)) for length in (100, 10, 98, 12)]
    assert grouped(sizes, device="cpu", most_slots=99) == [[1, 3], [0, 2]]
    assert grouped(sizes, device="cuda", most_slots=99) == [[0, 1, 2, 3]]
    assert grouped(sizes, device="cuda", most_slots=2) == [[1, 3], [0, 2]]
    assert grouped([Size((64, 512))] * 20, device="cuda", most_slots=99) == [[*range(4)]] + [
        [*range(first, first + 8)] for first in (4, 12)
    ]
    assert grouped([], device="cpu", most_slots=9) == []


def test_slots_that_skip_layers_have_a_pass_of_their_own_where_that_pays() -> None:
    sizes = [Size((32, 64), skipped) for skipped in (0.0, 0.75, 0.0, 0.75)]
    assert grouped(sizes, device="cpu", most_slots=99) == [[0, 2], [1, 3]]
    assert grouped(sizes, device="cuda", most_slots=99) == [[0, 1, 2, 3]]


def test_a_slots_draws_do_not_depend_on_who_draws_between_them() -> None:
    chances = Chances(torch.device("cpu"))
    before = torch.get_rng_state()
    chances.start("a", 1)
    chances.start("b", 2)
    drawn: dict[str, list[float]] = {"a": [], "b": []}
    with chances.drawing():
        for slot in "aabab":
            chances.enter(slot)
            drawn[slot].append(float(torch.rand(())))
    kept = chances.kept()
    with chances.drawing():
        chances.enter("a")
        drawn["a"].append(float(torch.rand(())))
    assert torch.equal(torch.get_rng_state(), before)
    for slot, seed in (("a", 1), ("b", 2)):
        expected = torch.rand(len(drawn[slot]), generator=torch.Generator().manual_seed(seed)).tolist()
        # `torch.rand(n)` draws as n single ones do.
        assert drawn[slot] == pytest.approx(expected)
    chances.put_back(kept)
    with chances.drawing():
        chances.enter("a")
        assert float(torch.rand(())) == drawn["a"][-1]
