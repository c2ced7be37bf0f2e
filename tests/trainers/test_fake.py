"""Tensors without values answer what code asks of them."""

import torch
from torch import nn

from autopeft.trainers.fake import adopt, faking, has_values, new_mode


def test_what_asks_for_values_is_answered() -> None:
    with faking(new_mode()):
        x = torch.zeros(3, 4)
        assert not has_values(x)
        assert x.sum().item() == 0.0
        assert x.long().sum().item() == 0
        assert not (x > 0).any()
        assert torch.equal(x, x + 1)
        assert x.nonzero().shape == (12, 2)
        assert x[x > 0].shape == (12,)
        assert x.masked_select(x > 0).shape == (12,)
        assert torch.distributions.Bernoulli(logits=x).sample().shape == (3, 4), "parameters are what they should be"
        assert torch.rand(1) > 0.5, "what is left out by chance is left in"


def test_products_by_groups_have_their_size_in_every_dtype() -> None:
    with faking(new_mode()):
        ends = torch.zeros(4, dtype=torch.int32)
        for dtype in (torch.float32, torch.bfloat16):
            rows, experts = torch.zeros(24, 16, dtype=dtype), torch.zeros(4, 16, 8, dtype=dtype)
            found = torch._grouped_mm(rows, experts, offs=ends)
            assert (found.shape, found.dtype) == ((24, 8), dtype)
            assert torch._grouped_mm(rows.t(), torch.zeros(24, 8, dtype=dtype), offs=ends).shape == (4, 16, 8)
            assert torch._grouped_mm(torch.zeros(4, 8, 16, dtype=dtype), experts).shape == (4, 8, 8)


def test_tensors_with_values_keep_them() -> None:
    mask = torch.tensor([[1, 1], [1, 0]])
    with faking(new_mode()):
        assert not bool(mask.all())
        assert bool(mask[0].all())
        assert (mask * torch.zeros(2, 2)).shape == (2, 2)


def test_modules_are_converted_and_shared_tensors_stay_shared() -> None:
    mode = new_mode()
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    pair = adopt(nn.ModuleList([first, second]), mode)
    assert first.weight is second.weight
    assert not has_values(first.weight)
    assert first.weight.requires_grad
    with faking(mode):
        pair.to(torch.bfloat16)
        assert first(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert first.bias.dtype == torch.bfloat16


def test_torch_converts_modules_as_ever_afterwards() -> None:
    before = nn.Module._apply
    with faking(new_mode()):
        assert nn.Module._apply is not before
    assert nn.Module._apply is before
