import gc

import torch
from torch import nn

from autopeft.trainers.meter import MemoryMeter, SavedTensorMeter, buffer_bytes, held_bytes, state_bytes

FLOAT = 4
N, D_IN, D_HIDDEN = 7, 5, 11


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D_IN, D_HIDDEN), nn.Sigmoid(), nn.Linear(D_HIDDEN, 1))


def test_saved_bytes_equal_a_hand_count() -> None:
    model, x = network(), torch.randn(N, D_IN)
    with SavedTensorMeter([model]) as saved:
        loss = model(x).sum()
    by_hand = N * D_IN + N * D_HIDDEN  # the first map keeps x; the sigmoid's output serves it and the second map
    assert saved.peak_bytes == FLOAT * by_hand
    loss.backward()


def test_a_frozen_map_keeps_nothing_but_passes_the_gradient_on() -> None:
    model, x = network(), torch.randn(N, D_IN, requires_grad=True)
    model.requires_grad_(False)
    with SavedTensorMeter([model]) as saved:
        model(x).sum().backward()
    assert saved.peak_bytes == FLOAT * N * D_HIDDEN


def test_the_peak_is_within_a_step_not_the_sum_of_steps() -> None:
    model, x = network(), torch.randn(N, D_IN)
    with SavedTensorMeter([model]) as saved:
        for _ in range(3):
            model(x).sum().backward()
            gc.collect()
    assert saved.peak_bytes == FLOAT * (N * D_IN + N * D_HIDDEN)


def test_views_of_one_storage_count_once() -> None:
    x = torch.randn(N, N, requires_grad=True)
    with SavedTensorMeter([]) as saved:
        (x[0] * x[1]).sum().backward()
    assert saved.peak_bytes == FLOAT * N * N


def test_results_are_the_same_with_the_meter_on() -> None:
    gradients = []
    for metered in (False, True):
        model, x = network(), torch.ones(N, D_IN)
        if metered:
            with SavedTensorMeter([model]):
                model(x).sum().backward()
        else:
            model(x).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_shared_parameters_and_buffers_count_once() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    first.register_buffer("table", torch.zeros(100))
    assert held_bytes([first, second, first]) == FLOAT * (9 + 100)
    assert buffer_bytes([first, second]) == FLOAT * 100


def test_the_peak_is_parameters_gradients_state_and_saved_tensors() -> None:
    base, adapter = network().requires_grad_(False), nn.Linear(D_IN, D_IN)
    optimizer = torch.optim.AdamW(adapter.parameters())
    meter = MemoryMeter(device=torch.device("cpu"), modules=(base, adapter))
    meter.start()
    assert meter.peak_bytes(optimizer) == 0
    with meter.step(optimizer):
        base(adapter(torch.randn(N, D_IN))).sum().backward()
    optimizer.step()
    trained = D_IN * D_IN + D_IN
    frozen = D_IN * D_HIDDEN + D_HIDDEN + D_HIDDEN + 1
    states = 2 * trained + 2  # two moments a parameter, one step count a tensor
    assert state_bytes(optimizer) == FLOAT * states
    saved = N * D_IN + N * D_HIDDEN
    assert meter.peak_bytes(optimizer) == FLOAT * (frozen + trained + trained + states + saved)
    meter.start()
    assert meter.peak_bytes(optimizer) == 0, "a new trial begins at nothing"
