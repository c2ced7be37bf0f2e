from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autopeft.errors import ConfigurationError, SpecError
from autopeft.trainers.adapters.lora import LoraPair
from autopeft.trainers.batches import Batch, collate
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.job import Report, TrainingSettings, TrainJob
from autopeft.trainers.loop import check_settings
from autopeft.trainers.model import LoadedModel, set_training
from autopeft.trainers.perturbation import WeightNoise, _Noise
from autopeft.trainers.regularizers import (
    Consistency,
    DensityMeter,
    Diversity,
    Regularizers,
    Spectrum,
    feed_forwards,
    off_diagonal_covariance,
)
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.models import MODELS
from tests.trainers import support

QUERY_VALUE = MODELS["bert"].query_value
CONFIG = configuration(
    setting("lora", (0, 2), rank=4, targets=QUERY_VALUE, dropout=0.1),
    setting("prefix_tuning", (1,), length=2),
    setting("serial_adapter", (1,), bottleneck=4),
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("regularizers")
    return support.trainer(folder, support.classification(folder))


@pytest.fixture
def adapters(trainer: Trainer) -> Iterator[AdapterSet]:
    made = inject(trainer.loaded.model, trainer.loaded.shape, CONFIG, seed=0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    yield made
    made.remove()


def batch_of(trainer: Trainer) -> Batch:
    return collate(trainer.tokens("train"), np.arange(7), pad_id=0)


def passed(trainer: Trainer, adapters: AdapterSet, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(outputs, penalty) of one pass."""
    terms = Regularizers(trainer.loaded, adapters, replace(support.SETTINGS, **settings), regression=False)
    batch = batch_of(trainer)
    outputs, _ = terms.outputs(partial(trainer._task.outputs, trainer.loaded.model, batch, CPU), batch)
    penalty = terms.penalty()
    assert penalty is not None
    return outputs, penalty


def plain(trainer: Trainer) -> torch.Tensor:
    return trainer._task.outputs(trainer.loaded.model, batch_of(trainer), CPU)[0]


def test_nothing_is_added_when_all_is_off(trainer: Trainer, adapters: AdapterSet) -> None:
    terms = Regularizers(trainer.loaded, adapters, support.SETTINGS, regression=False)
    batch = batch_of(trainer)
    terms.outputs(partial(trainer._task.outputs, trainer.loaded.model, batch, CPU), batch)
    assert terms.penalty() is None


def test_consistency_compares_with_the_model_without_adapters(trainer: Trainer, adapters: AdapterSet) -> None:
    with_adapters = plain(trainer)
    outputs, penalty = passed(trainer, adapters, ba_consistency=0.5)
    assert torch.equal(outputs, with_adapters), "looking away and back changes nothing"
    adapters.remove()
    without = plain(trainer)
    difference = outputs / outputs.norm(dim=1, keepdim=True) - without / without.norm(dim=1, keepdim=True)
    assert penalty.item() == pytest.approx(0.5 * difference.square().mean().item(), rel=1e-5)
    penalty.backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())


def test_dropout_is_as_it_was_after_the_look_without_adapters(trainer: Trainer, adapters: AdapterSet) -> None:
    set_training(trainer.loaded, training=True)
    adapters.train()
    modes = [module.training for module in (*trainer.loaded.model.modules(), *adapters.modules())]
    passed(trainer, adapters, ba_consistency=1.0)
    assert [module.training for module in (*trainer.loaded.model.modules(), *adapters.modules())] == modes
    set_training(trainer.loaded, training=False)


def test_consistency_of_a_language_model_is_the_divergence_from_the_frozen_one() -> None:
    generator = torch.Generator().manual_seed(0)
    tuned, frozen = torch.randn(5, 9, generator=generator), torch.randn(5, 9, generator=generator)
    p, q = frozen.softmax(1), tuned.softmax(1)
    expected = (p * (p / q).log()).sum(1).mean()
    term = Consistency(1.0, language=True)
    assert term.term(tuned, frozen).item() == pytest.approx(expected.item(), rel=1e-4)
    assert term.term(frozen, frozen).item() == pytest.approx(0.0, abs=1e-6)


def test_diversity_is_the_covariance_off_the_diagonal(trainer: Trainer, adapters: AdapterSet) -> None:
    seen: list[torch.Tensor] = []
    head = trainer.loaded.model.get_submodule("classifier")
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    _, penalty = passed(trainer, adapters, ba_diversity=2.0)
    handle.remove()
    covariance = np.cov(seen[0].numpy().T)
    np.fill_diagonal(covariance, 0.0)
    assert penalty.item() == pytest.approx(2.0 * (covariance**2).sum() / covariance.shape[0], rel=1e-4)


def test_one_row_has_no_covariance() -> None:
    assert off_diagonal_covariance(torch.ones(1, 4)).item() == 0.0


def test_diversity_of_a_language_model_is_its_entropy() -> None:
    logits = torch.zeros(3, 8)
    assert Diversity(1.0, head=None).term(logits, None).item() == pytest.approx(-np.log(8))


def test_the_spectrum_is_the_share_of_the_leading_values() -> None:
    values = torch.tensor([4.0, 3.0, 2.0, 1.0])
    left, _ = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    right, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
    assert Spectrum(1.0).term(left @ torch.diag(values) @ right, None).item() == pytest.approx(-0.9, rel=1e-4)
    two = Spectrum(1.0).term(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), None)
    assert two.item() == pytest.approx(-0.75), "of two values only the first is leading"
    assert Spectrum(1.0).term(torch.ones(3, 1), None).item() == 0.0
    assert Spectrum(1.0).term(torch.full((3, 3), float("nan")), None).isnan()


def activations(loaded: LoadedModel, trainer: Trainer) -> list[torch.Tensor]:
    """What the maps out of every feed-forward block read, real tokens only."""
    batch, seen = batch_of(trainer), []
    mask = torch.from_numpy(batch.mask_BT).bool()
    downs = [loaded.model.get_submodule(f"bert.encoder.layer.{layer}.output.dense") for layer in range(3)]
    handles = [down.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()[mask])) for down in downs]
    plain(trainer)
    for handle in handles:
        handle.remove()
    return seen


def test_density_is_the_mean_over_blocks_and_real_tokens(trainer: Trainer, adapters: AdapterSet) -> None:
    expected = torch.stack([(o**2 / (o**2 + 0.01)).mean() for o in activations(trainer.loaded, trainer)]).mean()
    _, penalty = passed(trainer, adapters, density=3.0, density_epsilon=0.01)
    assert penalty.item() == pytest.approx(3.0 * expected.item(), rel=1e-5)
    penalty.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in adapters.parameters())


def test_the_density_meter_counts_real_tokens(trainer: Trainer) -> None:
    seen = torch.cat(activations(trainer.loaded, trainer))
    meter = DensityMeter(trainer.loaded)
    with meter.watch(batch_of(trainer)), torch.inference_mode():
        plain(trainer)
    found = meter.values()
    assert found["activation_density"] == pytest.approx((seen.abs() > 1e-3).float().mean().item())
    assert found["activation_nonzero"] == pytest.approx((seen != 0).float().mean().item())
    assert not any(module._forward_pre_hooks for module in trainer.loaded.model.base_model.modules())


def test_a_model_without_feed_forward_blocks_has_no_density(trainer: Trainer) -> None:
    shape = replace(trainer.loaded.shape, layers=tuple(row[:4] for row in trainer.loaded.shape.layers))
    bare = replace(trainer.loaded, shape=shape)
    with pytest.raises(ConfigurationError, match=r"training\.density: this bert model has no feed-forward block"):
        feed_forwards(bare)


@pytest.mark.parametrize("name", ["ba_consistency", "ba_spectrum"])
def test_a_single_number_has_no_distribution(name: str, trainer: Trainer, adapters: AdapterSet) -> None:
    settings = replace(support.SETTINGS, **{name: 0.1})
    with pytest.raises(ConfigurationError, match=rf"training\.{name}: got 0\.1; a single number has no distribution"):
        Regularizers(trainer.loaded, adapters, settings, regression=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": -1.0}, r"training\.density: got -1\.0; allowed: 0 or more"),
        ({"density_epsilon": 0.0}, r"training\.density_epsilon: got 0\.0; allowed: a number above 0"),
        ({"ba_diversity": float("nan")}, r"training\.ba_diversity: got nan"),
        ({"optimizer": "sgd"}, r"training\.optimizer: got 'sgd'; allowed: adamw, lora_fa, galore"),
        ({"lora_plus_ratio": 0.0}, r"training\.lora_plus_ratio: got 0\.0; allowed: a number above 0"),
        ({"weight_decay_b": -0.1}, r"training\.weight_decay_b: got -0\.1; allowed: 0 or more, or nothing"),
        ({"galore_rank": 0}, r"training\.galore_rank: got 0; allowed: 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_settings(replace(TrainingSettings(), **changes))  # type: ignore[arg-type]  # fields by name


def last(reports: list[Report]) -> dict[str, float]:
    assert reports[-1].measurement is not None, reports[-1].failure
    return dict(reports[-1].measurement.metrics)


def test_the_density_loss_lowers_the_measured_density(tmp_path: Path) -> None:
    found: dict[float, dict[str, float]] = {}
    settings = replace(support.SETTINGS, measure_density=True)
    trainer = support.trainer(tmp_path, support.classification(tmp_path), settings=settings)
    targets = ("intermediate.dense",)
    for weight in (0.0, 10.0):
        lora = setting("lora", (0, 1, 2), rank=8, targets=targets)
        config = configuration(lora, density=weight, density_epsilon=1e-2, learning_rate=2e-2)
        found[weight] = last(list(trainer.run(TrainJob(configurations=(config,), seeds=(0,), epochs=6))))
    assert found[10.0]["activation_density"] < 0.95 * found[0.0]["activation_density"]


def full_noise_spread(pair: LoraPair, weight: torch.Tensor, sigma: float, beta: float) -> torch.Tensor:
    """The same from whole matrices."""
    assert pair.a.grad is not None
    assert pair.b.grad is not None
    update = pair.scale * pair.b @ pair.a
    gradient = pair.scale * (pair.b @ pair.a.grad + pair.b.grad @ pair.a)
    norms = (weight.square().sum(1) + update.square().sum(1)).sqrt()
    return (sigma * norms + beta * gradient.square().sum(1)) / weight.shape[0] ** 0.5


def test_the_noise_of_each_row_is_as_whole_matrices_say(trainer: Trainer, adapters: AdapterSet) -> None:
    noise = WeightNoise(trainer.loaded, adapters, sigma=0.03, beta=0.5)
    plain(trainer).square().sum().backward()
    noise.observe()
    assert len(noise._sites) == 4
    for site in noise._sites:
        expected = full_noise_spread(site.pair, site.linear.weight, 0.03, 0.5)
        assert torch.allclose(noise.spread(site), expected, rtol=1e-4)
        assert site.gradient_O.any()
    trainer.loaded.model.zero_grad()


def test_noise_is_there_while_watched_only(trainer: Trainer, adapters: AdapterSet) -> None:
    before = plain(trainer)
    terms = Regularizers(trainer.loaded, adapters, replace(support.SETTINGS, ggpo_sigma=0.1), regression=False)
    batch = batch_of(trainer)
    ask = partial(trainer._task.outputs, trainer.loaded.model, batch, CPU)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        noisy, again = terms.outputs(ask, batch)[0], terms.outputs(ask, batch)[0]
    assert not torch.allclose(noisy, before, atol=1e-4)
    assert not torch.allclose(noisy, again, atol=1e-4), "new in every pass"
    assert torch.equal(plain(trainer), before)
    assert terms.penalty() is None


def test_the_noise_has_the_stated_size() -> None:
    spread = torch.tensor([0.0, 0.5, 2.0])
    x = torch.eye(400)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        made = _Noise(spread)(nn.Identity(), (x,), torch.zeros(400, 3))
    assert torch.allclose(made.std(0), spread, rtol=0.1)


@pytest.mark.parametrize("kind", ["classes", "language"])
def test_training_with_every_term_learns(kind: str, tmp_path: Path) -> None:
    terms = {
        "ba_consistency": 1e-3,
        "ba_diversity": 1e-3,
        "ba_spectrum": 1e-3,
        "density": 1e-3,
        "ggpo_sigma": 0.01,
        "ggpo_beta": 0.01,
    }
    task = support.classification(tmp_path) if kind == "classes" else support.language(tmp_path)
    model = "bert" if kind == "classes" else "llama"
    trainer = support.trainer(tmp_path, task, model=model)
    lora = setting("lora", (0, 1, 2), rank=8, targets=MODELS[model].query_value)
    config = configuration(lora, **terms)
    reports = list(trainer.run(TrainJob(configurations=(config,), seeds=(0,), epochs=6)))
    first = reports[0].measurement
    assert first is not None
    assert last(reports)["loss"] < first.metrics["loss"]
    assert not any(isinstance(m, nn.Module) and m._forward_pre_hooks for m in trainer.loaded.model.base_model.modules())
