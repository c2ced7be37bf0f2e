"""CUDA's ways of computing, taken on a CPU."""

import torch
from torch import nn
from torch.nn import functional

from autopeft.trainers.checkpointing import CheckpointedLayers
from autopeft.trainers.device_paths import CudaPaths
from autopeft.trainers.meter import SavedTensorMeter

N = 64


def dropped(x: torch.Tensor) -> torch.Tensor:
    return functional.dropout(x * x, 0.5, training=True)


def test_dropout_keeps_a_mask_of_bytes() -> None:
    x, found = torch.ones(N, requires_grad=True), []
    for paths in (False, True):
        with SavedTensorMeter([]) as saved:
            if paths:
                with CudaPaths():
                    y = dropped(x)
            else:
                y = dropped(x)
        found.append(saved.peak_bytes - 4 * N)
        del y
    assert found == [4 * N, N]


class Layer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropped(x)


def test_what_is_computed_a_second_time_takes_the_same_way() -> None:
    x, layer, found = torch.ones(N, requires_grad=True), Layer(), []
    layers = CheckpointedLayers([layer], again=CudaPaths)
    with CudaPaths(), SavedTensorMeter([]) as saved:
        layers.watched = saved.around
        loss = layer(x).sum()
        found.append(saved.peak_bytes)
        loss.backward()
        found.append(saved.peak_bytes)
    assert found == [4 * N, 4 * N + N], "the input; then the mask of bytes beside it"
    assert x.grad is not None
    assert set(x.grad.tolist()) == {0.0, 4.0}, "what was left out has no gradient, the rest has"
