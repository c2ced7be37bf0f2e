import math

import pytest
import torch
from torch import nn

from autopeft.errors import DivergedError
from autopeft.trainers.galore import GaLoreAdamW


def moved(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, *, steps: int, seed: int = 0) -> torch.Tensor:
    """The parameter after `steps` updates with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (7,)])
def test_what_is_too_small_to_project_moves_as_adamw_moves_it(shape: tuple[int, ...]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = moved(GaLoreAdamW([ours], lr=0.01, weight_decay=0.1, rank=4), ours, steps=5)
    other = moved(torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1), theirs, steps=5)
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_one_step_is_adam_in_the_gradients_leading_directions(shape: tuple[int, int]) -> None:
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = grad.clone()
    GaLoreAdamW([parameter], lr=0.01, rank=3, scale=0.5).step()
    u, s, v = torch.linalg.svd(grad, full_matrices=False)
    sides = (u[:, :3], torch.diag(s[:3]) @ v[:3]) if shape[0] < shape[1] else (u[:, :3] @ torch.diag(s[:3]), v[:3])
    small = sides[1] if shape[0] < shape[1] else sides[0]
    sign = small / (small.abs() + 1e-8)
    expected = -0.01 * 0.5 * (sides[0] @ sign if shape[0] < shape[1] else sign @ sides[1])
    assert torch.allclose(parameter.detach(), expected, atol=1e-5)
    assert torch.linalg.matrix_rank(parameter.detach()) == 3


def test_its_state_is_as_small_as_the_projection() -> None:
    parameter = nn.Parameter(torch.zeros(40, 64))
    optimizer = GaLoreAdamW([parameter], lr=0.01, rank=4)
    moved(optimizer, parameter, steps=2)
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in tensors) == 4 * (2 * 4 * 64 + 40 * 4)


def test_the_projection_is_taken_again_after_its_gap() -> None:
    parameter = nn.Parameter(torch.zeros(6, 8))
    optimizer = GaLoreAdamW([parameter], lr=0.01, rank=2, gap=3)
    seen = []
    for step in range(4):
        moved(optimizer, parameter, steps=1, seed=step)
        seen.append(optimizer.state[parameter]["projector"].clone())
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert not torch.allclose(seen[2], seen[3])


def test_it_finds_the_minimum_of_a_quadratic() -> None:
    goal = torch.randn(10, 12, generator=torch.Generator().manual_seed(3))
    parameter = nn.Parameter(torch.zeros(10, 12))
    optimizer = GaLoreAdamW([parameter], lr=0.05, rank=3, gap=10, scale=1.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (parameter - goal).square().mean()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(400)]
    assert losses[-1] < 0.02 * losses[0]


def test_a_gradient_that_is_not_finite_ends_the_trial() -> None:
    parameter = nn.Parameter(torch.zeros(6, 8))
    parameter.grad = torch.full((6, 8), math.nan)
    with pytest.raises(DivergedError, match="a gradient is not finite"):
        GaLoreAdamW([parameter], lr=0.01, rank=2).step()
