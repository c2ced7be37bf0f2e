"""AdamW of several configurations against torch's, one by one."""

import pytest
import torch

from autopeft.kernels.reference.adamw import AdamW, adamw_step


def rule(n_slots: int, device: str = "cpu", **changed: torch.Tensor) -> AdamW:
    """One group, the usual settings, no bound, everybody active."""
    usual = {
        "learning_rate": torch.full((n_slots, 1), 0.1),
        "weight_decay": torch.full((n_slots, 1), 0.01),
        "ends": torch.tensor([1 << 30], dtype=torch.int32),
        "betas": torch.tensor([[0.9, 0.999]], dtype=torch.float64).repeat(n_slots, 1),
        "epsilon": torch.full((n_slots,), 1e-8),
        "max_norm": torch.full((n_slots,), torch.inf),
        "active": torch.ones(n_slots, dtype=torch.bool),
    }
    return AdamW(**{name: tensor.to(device) for name, tensor in (usual | changed).items()})


def test_every_slot_takes_the_steps_of_torchs_adamw_with_clipping() -> None:
    torch.manual_seed(0)
    rates, decays, bounds = (0.1, 0.01, 0.001), ((0.1, 0.0), (0.0, 0.2), (0.3, 0.3)), (0.5, torch.inf, 2.0)
    p = torch.randn(3, 9)
    alone = [[row[:4].clone().requires_grad_(), row[4:].clone().requires_grad_()] for row in p]
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": [halves[0]], "weight_decay": decay[0], "lr": rate},
                {"params": [halves[1]], "weight_decay": decay[1], "lr": 5 * rate},
            ]
        )
        for halves, rate, decay in zip(alone, rates, decays, strict=True)
    ]
    m, v, steps = torch.zeros_like(p), torch.zeros_like(p), torch.zeros(3, dtype=torch.int32)
    settings = rule(
        3,
        learning_rate=torch.tensor(rates).unsqueeze(1) * torch.tensor([1.0, 5.0]),
        weight_decay=torch.tensor(decays),
        ends=torch.tensor([4, 9], dtype=torch.int32),
        max_norm=torch.tensor(bounds),
    )
    for _ in range(5):
        g = torch.randn(3, 9)
        norms = adamw_step(p, g, m, v, steps, settings)
        for slot, (halves, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            halves[0].grad, halves[1].grad = g[slot, :4].clone(), g[slot, 4:].clone()
            norm = torch.nn.utils.clip_grad_norm_(halves, bounds[slot])
            optimizer.step()
            assert norms[slot].item() == pytest.approx(norm.item(), rel=1e-6)
            assert torch.allclose(p[slot], torch.cat([half.detach() for half in halves]), atol=1e-6)
    assert steps.tolist() == [5, 5, 5]


def test_slots_that_diverge_or_are_off_keep_everything_and_say_so() -> None:
    p, g = torch.ones(3, 4), torch.ones(3, 4)
    g[0, 1] = torch.inf
    m, v, steps = torch.zeros(3, 4), torch.zeros(3, 4), torch.full((3,), 6, dtype=torch.int32)
    norms = adamw_step(p, g, m, v, steps, rule(3, active=torch.tensor([True, False, True])))
    assert norms.isfinite().tolist() == [False, True, True]
    assert steps.tolist() == [6, 6, 7]
    assert torch.equal(p[:2], torch.ones(2, 4))
    assert torch.equal(m[:2], torch.zeros(2, 4))
    assert not torch.equal(p[2], torch.ones(4))
