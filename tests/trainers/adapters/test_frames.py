import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.errors import ModelError
from autopeft.trainers.adapters.frames import (
    Frame,
    corner_frame,
    frame_of,
    matrix_of,
    singular_frame,
    triangular_frame,
)

CUTS = [singular_frame, triangular_frame, corner_frame]


def drawn(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(frame: Frame) -> torch.Tensor:
    core = frame.core.diag() if frame.core.dim() == 1 else frame.core
    return frame.left @ core @ frame.right


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99), data=st.data())
def test_singular_frames_are_the_best_approximation_with_a_fixed_sign(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    weight, rank = drawn(rows, columns, seed=seed), data.draw(st.integers(1, min(rows, columns)))
    frame = singular_frame(weight, rank)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(product(frame), (u[:, :rank] * s[:rank]) @ vt[:rank])
    torch.testing.assert_close(frame.left.t() @ frame.left, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close(frame.right @ frame.right.t(), torch.eye(rank, dtype=torch.float64))
    assert (frame.left.gather(0, frame.left.abs().argmax(dim=0, keepdim=True)) > 0).all()


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99), data=st.data())
def test_an_index_does_what_the_permutation_matrix_of_ldu_does(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    weight, rank = drawn(rows, columns, seed=seed), data.draw(st.integers(1, min(rows, columns)))
    frame = triangular_frame(weight, rank)
    permutation, lower, upper = torch.linalg.lu(weight)
    z = upper.diagonal()
    assert torch.equal(frame.left, (permutation @ lower)[:, :rank])
    assert torch.equal(frame.core, z[:rank])
    torch.testing.assert_close(frame.right, (upper / z[:, None])[:rank])
    if rank == min(rows, columns):
        torch.testing.assert_close(product(frame), weight)


def test_the_first_ldu_terms_are_not_the_dominant_part() -> None:
    weight = drawn(64, 96)
    left_by_pivots = (weight - product(triangular_frame(weight, 8))).norm()
    left_by_values = (weight - product(singular_frame(weight, 8))).norm()
    assert left_by_values < 0.9 * weight.norm() < left_by_pivots


def test_corner_frames_are_columns_corner_and_rows() -> None:
    weight = drawn(4, 6)
    frame = corner_frame(weight, 2)
    assert torch.equal(frame.left, weight[:, :2])
    assert torch.equal(frame.core, weight[:2, :2])
    assert torch.equal(frame.right, weight[:2])


@pytest.mark.parametrize("cut", CUTS)
def test_a_smaller_frame_is_the_beginning_of_a_larger_one(cut: object) -> None:
    weight = drawn(7, 9)
    small, large = cut(weight, 3), cut(weight, 6).narrow(3)
    assert all(torch.equal(getattr(small, name), getattr(large, name)) for name in ("left", "core", "right"))


def test_a_weight_of_too_few_singular_values_is_refused_with_their_number() -> None:
    weight = drawn(6, 2) @ drawn(2, 8, seed=1)
    assert singular_frame(weight, 2).core.shape == (2,)
    with pytest.raises(ModelError, match=r"2 singular values above rounding, the rank is 3.*use a rank up to 2"):
        singular_frame(weight, 3)
    with pytest.raises(ModelError, match=r"0 singular values.*leave this map out"):
        singular_frame(torch.zeros(3, 3, dtype=torch.float64), 1)


def test_a_zero_pivot_is_refused_with_its_place() -> None:
    weight = drawn(6, 2) @ drawn(2, 8, seed=1)
    assert triangular_frame(weight, 2).core.shape == (2,)
    with pytest.raises(ModelError, match=r"pivot 3 of the weight is zero, the rank is 3.*use a rank up to 2"):
        triangular_frame(weight, 3)
    with pytest.raises(ModelError, match=r"pivot 1 .*leave this map out"):
        triangular_frame(torch.zeros(3, 3, dtype=torch.float64), 1)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("linear", [nn.Linear(6, 10), Conv1D(10, 6)], ids=["linear", "conv1d"])
def test_a_maps_frame_is_that_of_its_matrix_in_float32(cut: object, linear: nn.Module) -> None:
    frame = frame_of(linear, cut, 3)
    expected = cut(matrix_of(linear).double(), 3)
    assert matrix_of(linear).shape == (10, 6)
    for name in ("left", "core", "right"):
        assert torch.equal(getattr(frame, name), getattr(expected, name).float())


def test_frames_are_computed_again_when_the_rank_grows_or_the_weight_changes() -> None:
    linear, calls = nn.Linear(16, 16), []

    def cut(weight: torch.Tensor, rank: int) -> Frame:
        calls.append(rank)
        return corner_frame(weight, rank)

    for rank in (3, 4, 2):
        frame_of(linear, cut, rank)
    assert calls == [4]
    frame_of(linear, cut, 5)
    assert calls == [4, 8]
    with torch.no_grad():
        linear.weight.mul_(2)
    assert torch.equal(frame_of(linear, cut, 5).left, linear.weight[:, :5])
    assert calls == [4, 8, 8]
    assert list(linear.state_dict()) == ["weight", "bias"]


def test_the_rank_asked_for_is_enough_where_a_generous_one_is_impossible() -> None:
    linear = nn.Linear(8, 8)
    with torch.no_grad():
        linear.weight.copy_(torch.diag(torch.tensor([3.0, 2, 1, 0, 0, 0, 0, 0])))
    assert frame_of(linear, singular_frame, 3).core.tolist() == [3, 2, 1]
    with pytest.raises(ModelError, match="3 singular values"):
        frame_of(linear, singular_frame, 4)


def test_weights_that_are_not_finite_are_refused() -> None:
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="the weight has values that are not finite"):
        frame_of(linear, singular_frame, 1)
