"""Random bits by their place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.kernels.reference.philox import fold_seed, keep_mask, keep_scale, philox

ALL = 0xFFFFFFFF


def scalar(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64)


@pytest.mark.parametrize(
    ("seed", "counter", "words"),
    [  # the known answers of the authors' Random123 for philox4x32 with seven rounds
        (0, 0, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (-1, ALL, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    ],
)
def test_the_words_are_those_of_philox(seed: int, counter: int, words: tuple[int, ...]) -> None:
    assert tuple(map(int, philox(scalar(seed), *(scalar(counter),) * 4))) == words


@settings(max_examples=20, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_a_mask_does_not_depend_on_what_stands_around_it(seed: int, rows: int, columns: int, stream: int) -> None:
    p = torch.tensor(0.5)
    large = keep_mask(scalar(seed), p, rows=rows + 3, columns=columns + 11, stream=stream)
    assert torch.equal(large[:rows, :columns], keep_mask(scalar(seed), p, rows=rows, columns=columns, stream=stream))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_a_mask_keeps_its_share_and_differs_by_seed_and_stream(p: float) -> None:
    size = {"rows": 300, "columns": 333}
    mask, other, stream = (
        keep_mask(scalar(seed), torch.tensor(p), **size, stream=stream) for seed, stream in ((1, 0), (2, 0), (1, 1))
    )
    bound = 5 * (p * (1 - p) / mask.numel()) ** 0.5
    assert abs(mask.float().mean().item() - (1 - p)) < bound
    for apart in (other, stream):
        together = (mask & apart).float().mean().item()
        assert abs(together - (1 - p) ** 2) < 2 * bound
    assert (mask.float().mean() * keep_scale(torch.tensor(p))).item() == pytest.approx(1.0, abs=bound / (1 - p))


def test_nothing_is_dropped_at_zero() -> None:
    assert keep_mask(scalar(3), torch.tensor(0.0), rows=9, columns=9, stream=0).all()
    assert keep_scale(torch.tensor(0.0)).item() == 1.0


def test_seeds_of_steps_and_slots_are_all_different_and_repeatable() -> None:
    seeds, steps = torch.meshgrid(torch.arange(-50, 50), torch.arange(100), indexing="ij")
    folded = fold_seed(seeds.flatten(), steps.flatten())
    assert len(folded.unique()) == 10_000
    assert torch.equal(folded, fold_seed(seeds.flatten(), steps.flatten()))


@pytest.mark.parametrize("tokens", [5, 8])
def test_how_long_sequences_are_padded_changes_no_mask(tokens: int) -> None:
    p, columns = torch.tensor(0.5), 24
    own = keep_mask(scalar(4), p, rows=3 * 4, columns=columns, stream=2, tokens=4).view(3, 4, columns)
    padded = keep_mask(scalar(4), p, rows=3 * tokens, columns=columns, stream=2, tokens=tokens).view(3, tokens, columns)
    assert torch.equal(padded[:, :4], own)
    assert not torch.equal(own[0], own[1])
