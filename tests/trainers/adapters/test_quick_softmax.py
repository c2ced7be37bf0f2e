"""The float32 softmax of bf16 attention: closer than torch's, with the same bytes kept, in the model's own function."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.trainers.adapters.quick_softmax import QUICK, Softmax, quick, quicken
from autopeft.trainers.inject import inject
from autopeft.trainers.meter import SavedTensorMeter
from autopeft.trainers.sites import measure
from tests.configurations import configuration, setting
from tests.models import MODELS, build_base, example
from tests.trainers import support
from tests.trainers.packed.support import by_slot, job, same


def of(scores: torch.Tensor, grad: torch.Tensor, *, own: bool) -> tuple[torch.Tensor, torch.Tensor]:
    scores = scores.clone().requires_grad_(True)
    probabilities = functional.softmax(scores, -1) if own else Softmax.apply(scores)
    probabilities.backward(grad)
    assert scores.grad is not None
    return probabilities.detach(), scores.grad


@pytest.mark.parametrize("shape", [(2, 3, 5, 1), (2, 3, 7, 7), (1, 2, 33, 40), (0, 2, 3, 3)])
def test_values_and_gradients_are_at_least_as_close_as_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    scores, grad = (5 * torch.randn(shape)).bfloat16(), torch.randn(shape).bfloat16()
    scores[..., shape[-1] // 2 :][..., 1:] += torch.finfo(torch.bfloat16).min
    whole = of(scores.double(), grad.double(), own=True)
    for mine, theirs, exact in zip(of(scores, grad, own=False), of(scores, grad, own=True), whole, strict=True):
        assert mine.dtype is torch.bfloat16
        assert (mine - exact).norm() <= 1.05 * (theirs - exact).norm() + 1e-6


def test_only_softmaxes_of_bf16_scores_over_the_last_dimension_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    apply = Softmax.apply
    monkeypatch.setattr(Softmax, "apply", lambda scores: calls.append(scores) or apply(scores))
    scores = torch.randn(3, 4).bfloat16()
    run = quick(lambda call: call())
    for call in (
        lambda: functional.softmax(scores, dim=-1),
        lambda: torch.softmax(scores, 1),
        lambda: scores.softmax(dim=-1),
    ):
        torch.testing.assert_close(run(call), call(), atol=4e-3, rtol=0)
    assert len(calls) == 3
    for call in (
        lambda: functional.softmax(scores, dim=0),
        lambda: functional.softmax(scores, dim=-1, dtype=torch.float32),
        lambda: functional.softmax(scores.float(), dim=-1),
        lambda: scores.sum(),
    ):
        assert torch.equal(run(call), call())
    assert len(calls) == 3


def base_of(name: str, *, attention: str = "eager", dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    return build_base(name, attention=attention).to(dtype)  # type: ignore[arg-type]  # transformers wraps Module.to


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row.prefix])
def test_a_model_says_the_same_and_keeps_as_many_bytes(name: str) -> None:
    model = base_of(name)
    shape = measure(model, model.config)
    sites = tuple(site.name for site in shape.layers[0][:2])
    adapters = inject(model, shape, configuration(setting("lora", (0,), rank=2, targets=sites)), seed=1)
    inputs = example(model, n=3, length=9)
    inputs["attention_mask"][1, 5:] = 0

    def told() -> tuple[torch.Tensor, torch.Tensor, int]:
        with SavedTensorMeter([model, adapters]) as meter:
            states = model(**inputs).last_hidden_state[:, :5]
        gradients = torch.autograd.grad(states.float().square().sum(), list(adapters.parameters()), allow_unused=True)
        return states.detach(), torch.cat([row.flatten() for row in gradients if row is not None]), meter.peak_bytes

    before = told()
    assert quicken(model, shape)
    assert model.config._attn_implementation == QUICK
    after = told()
    assert (after[0] - before[0]).norm() <= 2e-2 * before[0].norm()
    assert (after[1] - before[1]).norm() <= 5e-2 * before[1].norm()
    assert after[2] == before[2]


def test_a_model_of_another_kind_is_left_as_it_is() -> None:
    for model in (base_of("bert", dtype=torch.float32), base_of("bert", attention="sdpa")):
        named = model.config._attn_implementation
        assert not quicken(model, measure(model, model.config))
        assert model.config._attn_implementation == named


def test_a_prefix_acts_around_it_and_packs_train_as_alone(tmp_path: Path) -> None:
    settings = replace(support.SETTINGS, batch_size=8, precision="bfloat16")
    trainer = support.trainer(tmp_path, support.classification(tmp_path, n=26), settings=settings)
    prefix = configuration(setting("prefix_tuning", (0, 2), length=3), learning_rate=5e-3)
    lora = configuration(setting("lora", (0, 1), rank=2, targets=MODELS["bert"].query_value, dropout=0.2))
    alone = by_slot(trainer.run(job((prefix, lora))))
    assert trainer.loaded.model.config._attn_implementation == QUICK
    packed = by_slot(trainer.run(job((prefix, lora), at_once=2)))
    assert trainer.loaded.model.config._attn_implementation == QUICK, "the prefix put it back"
    for slot in (0, 1):
        same(packed[slot], alone[slot], tolerance=2e-2)
