"""Initialisations that look at training rows: what they see, what comes of it, and that nothing else is touched."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn

from autopeft.errors import DivergedError, ModelError
from autopeft.spaces.methods.peft_lora import FROM_DATA
from autopeft.trainers.adapters.peft_bridge import PeftSite
from autopeft.trainers.adapters.site_facts import Components, Covariance, finite
from autopeft.trainers.adapters.site_updates import SiteUpdates
from autopeft.trainers.batches import Batch, batches_of
from autopeft.trainers.calibration import BATCH, ROWS
from autopeft.trainers.course import pad_id_of
from autopeft.trainers.inject import AdapterSet, build, inject
from autopeft.trainers.job import ModelSpec, TrainJob
from autopeft.trainers.model import load_model, reset_head
from autopeft.trainers.peft_folder import write_folder
from autopeft.trainers.saved import load_adapter, restore_adapter, save_adapter
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.models import MODELS
from tests.trainers import support

TARGETS = MODELS["bert"].query_value
RANK = 3


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("calibration")
    made = support.trainer(folder, support.classification(folder))
    reset_head(made.loaded, 0)
    return made


def placed(init: str, *, variant: str = "plain", rank: int = RANK):  # a configuration
    return configuration(setting("peft_lora", (0, 2), rank=rank, targets=TARGETS, init=init, variant=variant))


def told(trainer: Trainer, init: str, *, seed: int = 1, variant: str = "plain") -> AdapterSet:
    """Adapters of `init`, told what they need, not attached."""
    adapters = build(trainer.loaded.shape, placed(init, variant=variant), seed=seed)
    trainer._calibrate(adapters, seed=seed)
    return adapters


def started(trainer: Trainer, init: str, *, seed: int = 1) -> dict[str, torch.Tensor]:
    """Every tensor of the adapters once they have met the weight."""
    adapters = told(trainer, init, seed=seed)
    adapters.attach(trainer.loaded.model, trainer.loaded.shape)
    adapters.remove()
    return {name: tensor.clone() for name, tensor in adapters.state_dict().items()}


def site(adapters: AdapterSet) -> PeftSite:
    adapter = next(one for _, _, one in adapters.adapters())
    assert isinstance(adapter, SiteUpdates)
    update = adapter.update(TARGETS[0])
    assert isinstance(update, PeftSite)
    return update


def some(trainer: Trainer) -> Batch:
    return next(batches_of(trainer.tokens("train"), [np.arange(8)], pad_id=pad_id_of(trainer.loaded)))


def logits(trainer: Trainer) -> torch.Tensor:
    with torch.inference_mode():
        return trainer._task.outputs(trainer.loaded.model, some(trainer), torch.device("cpu"))[0]


@pytest.mark.parametrize(
    ("init", "variant"), [*((init, "plain") for init in FROM_DATA), ("eva", "dora"), ("eva", "ffa")]
)
def test_the_model_is_unchanged_at_the_start(init: str, variant: str, trainer: Trainer) -> None:
    before, weights = logits(trainer), copy.deepcopy(trainer.loaded.model.state_dict())
    adapters = told(trainer, init, variant=variant)
    adapters.attach(trainer.loaded.model, trainer.loaded.shape)
    torch.testing.assert_close(logits(trainer), before, atol=2e-5, rtol=1e-4)
    adapters.remove()
    after = trainer.loaded.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert not any(parameter.requires_grad for parameter in trainer.loaded.model.base_model.encoder.parameters())
    assert all(parameter.grad is None for parameter in trainer.loaded.model.parameters())


@pytest.mark.parametrize("init", FROM_DATA)
def test_equal_seeds_give_equal_tensors_and_others_see_other_rows(init: str, trainer: Trainer) -> None:
    first, second, third = (started(trainer, init, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.allclose(first[name], third[name]) for name in first if "lora_A" in name)


def test_only_training_rows_are_looked_at(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    tokens = trainer.tokens

    def remember(split: str):  # what the trainer gives
        asked.append(split)
        return tokens(split)

    monkeypatch.setattr(trainer, "tokens", remember)
    told(trainer, "eva")
    assert set(asked) == {"train"}


def rows_seen(trainer: Trainer, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 3]).permutation(len(trainer.tokens("train").lengths))[:ROWS]


def peft_twin(trainer: Trainer, config: LoraConfig, *, prepare: str) -> PeftModel:
    """Peft as its documentation uses it, on the rows that a trial with seed 1 looks at, with nothing dropped."""
    model = copy.deepcopy(trainer.loaded.model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    train, pad, rows = trainer.tokens("train"), pad_id_of(trainer.loaded), rows_seen(trainer, 1)

    def loss(batch: Batch) -> torch.Tensor:
        return trainer._task.loss(*trainer._task.outputs(model, batch, torch.device("cpu")))

    def forward() -> None:
        for index in range(len(rows)):
            loss(next(batches_of(train, [rows[[index]]], pad_id=pad)))

    def backward() -> None:
        for start in range(0, len(rows), BATCH):
            loss(next(batches_of(train, [rows[start : start + BATCH]], pad_id=pad))).backward()

    if prepare == "corda":
        preprocess_corda(model, config, run_model=forward)
    else:
        preprocess_loraga(model, config, train_step=backward)
    return get_peft_model(model, config)  # type: ignore[arg-type]  # a transformers model


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda_starts_as_peft_starts_it(method: str, trainer: Trainer) -> None:
    name = f"bert.encoder.layer.0.{TARGETS[0]}"
    config = LoraConfig(
        r=RANK,
        lora_alpha=16,
        target_modules=[name],
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=method),  # type: ignore[arg-type]  # one of two words
    )
    layer = peft_twin(trainer, config, prepare="corda").get_submodule(f"base_model.model.{name}")
    ours = told(trainer, f"corda_{method}")
    ours.attach(trainer.loaded.model, trainer.loaded.shape)
    ours.remove()
    a, b, scale = site(ours).low_rank()
    wanted = layer.get_submodule("lora_B.default").weight @ layer.get_submodule("lora_A.default").weight  # type: ignore[operator]
    torch.testing.assert_close(b[:, :RANK] @ a[:RANK], wanted, atol=1e-4, rtol=1e-3)
    assert scale == pytest.approx(16 / RANK)


def test_lora_ga_starts_as_peft_starts_it(trainer: Trainer) -> None:
    name = f"bert.encoder.layer.0.{TARGETS[0]}"
    config = LoraConfig(
        r=RANK, lora_alpha=16, target_modules=[name], init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )
    layer = peft_twin(trainer, config, prepare="lora_ga").get_submodule(f"base_model.model.{name}")
    ours = told(trainer, "lora_ga")
    ours.attach(trainer.loaded.model, trainer.loaded.shape)
    ours.remove()
    a, b, _ = site(ours).low_rank()
    for mine, theirs in ((a[:RANK], "lora_A"), (b[:, :RANK], "lora_B")):
        wanted = layer.get_submodule(f"{theirs}.default").weight
        assert isinstance(wanted, torch.Tensor)
        torch.testing.assert_close(mine.abs(), wanted.detach().abs(), atol=2e-3, rtol=2e-2)


def test_eva_starts_from_the_principal_components_of_the_inputs(trainer: Trainer) -> None:
    seen: list[torch.Tensor] = []
    linear = trainer.loaded.model.base_model.encoder.layer[0].get_submodule(TARGETS[0])
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    train, pad = trainer.tokens("train"), pad_id_of(trainer.loaded)
    with torch.inference_mode():
        for index in rows_seen(trainer, 1):
            batch = next(batches_of(train, [np.array([index])], pad_id=pad))
            trainer._task.outputs(trainer.loaded.model, batch, torch.device("cpu"))
    handle.remove()
    x = torch.cat(seen)
    _, _, v = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    ours = told(trainer, "eva")
    ours.attach(trainer.loaded.model, trainer.loaded.shape)
    ours.remove()
    a, b, _ = site(ours).low_rank()
    assert torch.equal(b, torch.zeros_like(b))
    overlap = torch.linalg.svdvals(a @ v[:RANK].t())
    assert overlap.min() > 0.95, "A spans the leading components"


def test_few_tokens_leave_the_other_rows_as_drawn() -> None:
    fact = Components(5)
    fact.add(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    assert fact.result().shape == (2, 8)


def test_a_covariance_is_the_mean_over_rows() -> None:
    fact = Covariance()
    rows = [torch.rand(n, 4, generator=torch.Generator().manual_seed(n)) for n in (2, 5)]
    for row in rows:
        fact.add(row)
    wanted = sum((row / row.max()).t() @ (row / row.max()) for row in rows)
    assert isinstance(wanted, torch.Tensor)
    torch.testing.assert_close(fact.result(), wanted / 2)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(DivergedError, match=r"rows that the initialisation looks at .* not finite .*use float32"):
        finite(torch.tensor([float("nan")]))


@pytest.mark.parametrize("init", FROM_DATA)
def test_without_training_rows_the_adapter_says_so(init: str, trainer: Trainer) -> None:
    with pytest.raises(ModelError, match=r"starts from the \w+ of training rows, which it was not told"):
        inject(trainer.loaded.model, trainer.loaded.shape, placed(init), seed=0)


@pytest.mark.parametrize("init", FROM_DATA)
def test_a_trained_adapter_loads_without_data_and_in_plain_peft(init: str, trainer: Trainer, tmp_path: Path) -> None:
    own = tmp_path / "own"
    job = TrainJob(configurations=(placed(init),), seeds=(4,), epochs=1, output_dirs=(own,))
    (report,) = trainer.run(job)
    assert report.failure is None
    model, _ = load_adapter(own)
    loaded = load_model(ModelSpec(name=trainer.loaded.spec.name), kind="text-classification", n_labels=2)
    write_folder(own, tmp_path / "peft")
    plain = PeftModel.from_pretrained(loaded.model, str(tmp_path / "peft")).eval()
    inputs = {"input_ids": torch.from_numpy(some(trainer).ids_BT)}
    with torch.inference_mode():
        torch.testing.assert_close(plain(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-3)


def test_time_is_counted_as_training(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr("autopeft.trainers.trainer.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    (report,) = trainer.run(TrainJob(configurations=(placed("lora_ga"),), seeds=(0,), epochs=1))
    assert report.measurement is not None
    assert 100 < report.measurement.train_seconds < 200, "one tick of this clock, and the training"


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Trainer]:
    made = support.trainer(tmp_path, support.classification(tmp_path))
    with torch.no_grad():
        made.loaded.model.get_input_embeddings().weight.fill_(float("nan"))
    yield made
    made.close()


@pytest.mark.parametrize("init", FROM_DATA)
def test_values_that_are_not_finite_fail_the_trial(init: str, broken: Trainer) -> None:
    (report,) = broken.run(TrainJob(configurations=(placed(init),), seeds=(0,), epochs=1))
    assert report.failure is not None
    kind, message = report.failure
    assert kind == "diverged"
    assert "the initialisation looks at" in message


def test_a_saved_start_is_restored(trainer: Trainer, tmp_path: Path) -> None:
    adapters = told(trainer, "corda_ipm")
    adapters.attach(trainer.loaded.model, trainer.loaded.shape)
    want = logits(trainer)
    save_adapter(tmp_path, adapters, loaded=trainer.loaded, task={})
    adapters.remove()
    again = restore_adapter(tmp_path)
    with torch.inference_mode():
        found = trainer._task.outputs(again.loaded.model, some(trainer), torch.device("cpu"))[0]
    torch.testing.assert_close(found, want)
