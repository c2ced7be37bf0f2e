import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autopeft.errors import ConfigurationError, DivergedError, ModelError, SpecError
from autopeft.spaces.configuration import Configuration
from autopeft.trainers import loop
from autopeft.trainers.course import Run, learning_rate_factor
from autopeft.trainers.job import Report, TrainJob
from autopeft.trainers.loop import check_settings, settings_of
from autopeft.trainers.optimizers import make_optimizer
from autopeft.trainers.trainer import Trainer, failure_of
from tests.configurations import configuration, setting
from tests.models import MODELS
from tests.trainers import support
from tests.trainers.support import SETTINGS

QUERY_VALUE = MODELS["bert"].query_value
LORA = configuration(setting("lora", (0, 1, 2), rank=8, targets=QUERY_VALUE, alpha=16.0, dropout=0.1))
MIXED = configuration(
    setting("lora", (1,), rank=2, targets=QUERY_VALUE, alpha=16.0, dropout=0.0),
    setting("prefix_tuning", (0, 2), length=3),
    setting("serial_adapter", (2,), bottleneck=4, activation="gelu", scale=1.0),
    setting("parallel_adapter", (0,), bottleneck=6, activation="relu", scale=4.0),
    learning_rate=5e-3,
)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("trainer")
    return support.trainer(folder, support.classification(folder))


def job(*configurations: Configuration, epochs: int = 2, seed: int = 1, **fields: object) -> TrainJob:
    seeds = tuple(seed + index for index in range(len(configurations)))
    return TrainJob(configurations=configurations, seeds=seeds, epochs=epochs, **fields)  # type: ignore[arg-type]


def losses(reports: Sequence[Report]) -> list[float]:
    return [report.measurement.train_loss for report in reports if report.measurement is not None]


def test_training_learns_and_reports_every_epoch(trainer: Trainer) -> None:
    reports = list(trainer.run(job(LORA, epochs=8)))
    assert [report.done for report in reports] == [False] * 7 + [True]
    measurements = [report.measurement for report in reports if report.measurement is not None]
    assert [m.epoch for m in measurements] == list(range(1, 9))
    first, last = measurements[0], measurements[-1]
    assert last.metrics["accuracy"] >= 0.85
    assert last.train_loss < 0.6 * first.train_loss
    assert last.parameters == sum(8 * (32 + 32) for _ in range(6))
    assert last.head_parameters > 0
    assert last.tokens == 8 * int(trainer.tokens("train").lengths.sum())
    assert first.peak_bytes == last.peak_bytes > 0
    assert 0 < first.train_seconds < last.train_seconds


def test_equal_seeds_give_equal_runs_and_others_do_not(trainer: Trainer) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = list(trainer.run(job(LORA)))
    assert torch.equal(torch.random.get_rng_state(), before), "the process's random state is left alone"
    torch.manual_seed(6)
    second = list(trainer.run(job(LORA)))
    other = list(trainer.run(job(LORA, seed=9)))
    assert losses(first) == losses(second) != losses(other)
    assert [r.measurement.metrics for r in first if r.measurement] == [
        r.measurement.metrics for r in second if r.measurement
    ]


def test_a_step_that_leaves_every_adapter_out_trains_nothing_and_goes_on(tmp_path: Path) -> None:
    made = support.trainer(tmp_path, support.language(tmp_path), model="llama")
    values = {"rank": 2, "targets": MODELS["llama"].query_value[:1], "module_dropout": 0.9}
    reports = list(made.run(job(configuration(setting("loha", (1,), **values)))))
    assert reports[-1].failure is None
    assert len(losses(reports)) == 2


def test_a_trial_does_not_depend_on_the_ones_before_it(trainer: Trainer) -> None:
    alone = list(trainer.run(job(MIXED, seed=4)))
    together = list(trainer.run(job(LORA, MIXED, seed=3)))
    assert losses([report for report in together if report.slot == 1]) == losses(alone)
    assert not any(module._forward_hooks for module in trainer.loaded.model.base_model.modules()), "adapters are gone"


def test_the_base_never_changes(trainer: Trainer) -> None:
    before = {name: value.clone() for name, value in trainer.loaded.model.base_model.state_dict().items()}
    list(trainer.run(job(MIXED)))
    after = trainer.loaded.model.base_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in trainer.loaded.model.base_model.parameters())


def test_the_test_split_is_tokenised_and_scored_only_when_asked(tmp_path: Path) -> None:
    trainer = support.trainer(tmp_path, support.classification(tmp_path))
    assert all(not report.test_metrics for report in trainer.run(job(LORA)))
    assert "test" not in trainer._tokens
    reports = list(trainer.run(job(LORA, evaluate_test=True)))
    assert [sorted(report.test_metrics) for report in reports] == [[], ["accuracy", "loss"]]


def test_a_saved_adapter_scores_the_same_again(trainer: Trainer, tmp_path: Path) -> None:
    reports = list(trainer.run(job(MIXED, evaluate_test=True, output_dirs=(tmp_path / "adapter",))))
    list(trainer.run(job(LORA)))
    assert trainer.evaluate(tmp_path / "adapter", "test") == reports[-1].test_metrics
    last = reports[-1].measurement
    assert last is not None
    assert trainer.evaluate(tmp_path / "adapter", "validation") == last.metrics


def test_an_adapter_of_another_model_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    other = support.trainer(tmp_path, support.classification(tmp_path), model="llama")
    lora = configuration(setting("lora", (0,), rank=2, targets=("self_attn.q_proj",), alpha=1.0, dropout=0.0))
    list(other.run(job(lora, epochs=1, output_dirs=(tmp_path / "adapter",))))
    with pytest.raises(ModelError, match=r"adapter: is for text-classification on .*llama.*load it on"):
        trainer.evaluate(tmp_path / "adapter")


def test_an_empty_configuration_trains_the_head_alone(trainer: Trainer) -> None:
    (report,) = trainer.run(job(configuration(), epochs=1))
    assert report.measurement is not None
    assert report.measurement.parameters == 0


def test_a_diverged_trial_is_a_report_and_the_next_one_is_sound(trainer: Trainer) -> None:
    wild = replace(LORA, training=(("learning_rate", 1e30),))
    reports = list(trainer.run(job(wild, LORA, epochs=1)))
    assert reports[0].failure is not None
    assert reports[0].failure[0] == "diverged"
    assert "lower the learning rate" in reports[0].failure[1]
    assert reports[0].done
    assert reports[1].measurement is not None


def test_a_trial_past_its_deadline_is_a_report(trainer: Trainer) -> None:
    (report,) = trainer.run(job(LORA, settings={"deadline_seconds": 1e-6}))
    assert report.failure is not None
    assert report.failure[0] == "timeout"
    assert "ran past its deadline of 1e-06 s" in report.failure[1]
    with pytest.raises(SpecError, match="deadline_seconds: got 0; a number of seconds above 0"):
        list(trainer.run(job(LORA, settings={"deadline_seconds": 0})))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
        (DivergedError("the loss became nan"), "diverged"),
    ],
)
def test_running_out_of_memory_is_a_report(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    def fail(run: Run) -> None:
        raise error

    monkeypatch.setattr(loop, "train", fail)
    (report,) = trainer.run(job(LORA))
    assert report.failure is not None
    assert report.failure[0] == kind
    monkeypatch.undo()
    assert next(iter(trainer.run(job(LORA)))).measurement is not None, "nothing is left attached"


def test_a_bug_is_raised(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(loop, "train", fail)
    assert failure_of(RuntimeError("shapes cannot be multiplied")) is None
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(trainer.run(job(LORA)))


def test_closing_the_iterator_takes_the_adapters_off(trainer: Trainer) -> None:
    reports = trainer.run(job(LORA, epochs=5))
    next(reports)
    reports.close()  # type: ignore[attr-defined]
    assert not any(module._forward_hooks for module in trainer.loaded.model.base_model.modules())


def test_a_configuration_that_does_not_fit_is_refused(trainer: Trainer) -> None:
    deep = configuration(setting("prefix_tuning", (7,), length=2))
    with pytest.raises(ConfigurationError, match="layer 7 does not exist"):
        list(trainer.run(job(deep)))


def test_numbers_are_learned_and_correlated(tmp_path: Path) -> None:
    settings = replace(SETTINGS, learning_rate=2e-2)
    reports = list(support.trainer(tmp_path, support.numbers(tmp_path), settings=settings).run(job(LORA, epochs=10)))
    last = reports[-1].measurement
    assert last is not None
    assert last.metrics["pearson"] > 0.5


@pytest.mark.parametrize("text", [("text",), ("prompt", "completion")])
def test_a_language_model_is_trained_to_a_lower_perplexity(tmp_path: Path, text: tuple[str, ...]) -> None:
    trainer = support.trainer(tmp_path, support.language(tmp_path, text=text), model="llama")
    targets = MODELS["llama"].query_value
    lora = configuration(setting("lora", (0, 1, 2), rank=8, targets=targets, alpha=16.0, dropout=0.0))
    reports = list(trainer.run(job(lora, epochs=8)))
    values = [report.measurement.metrics["perplexity"] for report in reports if report.measurement is not None]
    assert values[-1] < 0.7 * values[0]
    last = reports[-1].measurement
    assert last is not None
    assert last.head_parameters == 0
    assert last.metrics["perplexity"] == pytest.approx(math.exp(last.metrics["loss"]))
    (bare,) = trainer.run(job(configuration(), epochs=1))
    assert bare.measurement is not None
    assert bare.measurement.parameters == 0


def test_bfloat16_trains_as_well_with_half_the_weights(tmp_path: Path) -> None:
    task = support.classification(tmp_path)
    peaks, accuracies = [], []
    for precision in ("float32", "bfloat16"):
        trainer = support.trainer(tmp_path, task, settings=replace(SETTINGS, precision=precision))
        last = list(trainer.run(job(LORA, epochs=8)))[-1].measurement
        assert last is not None
        peaks.append(last.peak_bytes)
        accuracies.append(last.metrics["accuracy"])
        assert {parameter.dtype for parameter in trainer.loaded.model.base_model.parameters()} <= {
            torch.float32,
            torch.bfloat16,
        }
    assert peaks[1] < 0.75 * peaks[0]
    assert accuracies[1] >= accuracies[0] - 0.1


def test_a_length_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    trainer = support.trainer(tmp_path, support.classification(tmp_path), settings=replace(SETTINGS, max_length=65))
    with pytest.raises(SpecError, match=r"training\.max_length: got 65; .* takes at most 64 tokens"):
        list(trainer.run(job(LORA)))
    roberta = support.trainer(
        tmp_path, support.classification(tmp_path), model="roberta", settings=replace(SETTINGS, max_length=64)
    )
    with pytest.raises(SpecError, match="takes at most 63 tokens"):
        list(roberta.run(job(LORA)))


def test_threads_are_set_only_when_asked(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    task = support.classification(tmp_path)
    support.trainer(tmp_path, task)
    assert torch.get_num_threads() == before
    spec = support.trainer(tmp_path, task)._model
    try:
        Trainer(spec, task, SETTINGS, device="cpu", threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_closed_trainer_loads_again(tmp_path: Path) -> None:
    trainer = support.trainer(tmp_path, support.classification(tmp_path))
    first = losses(list(trainer.run(job(LORA, epochs=1))))
    trainer.close()
    assert losses(list(trainer.run(job(LORA, epochs=1)))) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"training\.epochs: got 0; allowed: 1 or more"),
        ({"batch_size": -1}, r"training\.batch_size: got -1"),
        ({"learning_rate": math.nan}, r"training\.learning_rate: got nan; allowed: a number above 0"),
        ({"warmup_ratio": 1.5}, r"training\.warmup_ratio: got 1\.5; allowed: from 0 to 1"),
        ({"clip_norm": 0.0}, r"training\.clip_norm: got 0\.0"),
        ({"schedule": "step"}, r"training\.schedule: got 'step'; allowed: linear, cosine, constant"),
    ],
)
def test_a_setting_out_of_range_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_settings(replace(SETTINGS, **changes))  # type: ignore[arg-type]


def test_a_configuration_s_entries_replace_settings() -> None:
    merged = settings_of(SETTINGS, configuration(learning_rate=0.5, batch_size=4))
    assert merged == replace(SETTINGS, learning_rate=0.5, batch_size=4)
    with pytest.raises(ConfigurationError, match="training setting 'momentum' is unknown"):
        settings_of(SETTINGS, configuration(momentum=0.5))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_rises_and_falls(schedule: str, expected: list[float]) -> None:
    factors = [learning_rate_factor(step, total=6, warmup_ratio=0.33, schedule=schedule) for step in range(6)]
    assert factors == pytest.approx(expected, abs=1e-5)
    assert learning_rate_factor(0, total=6, warmup_ratio=0.0, schedule=schedule) == 1.0


def test_biases_and_vectors_are_not_decayed() -> None:
    layer = torch.nn.Linear(3, 3)
    optimizer = make_optimizer(list(layer.named_parameters()), replace(SETTINGS, weight_decay=0.1))
    decays = {tuple(p.shape): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {(3, 3): 0.1, (3,): 0.0}


def test_checkpointing_gives_the_same_losses_for_less_memory(tmp_path: Path) -> None:
    found: list[list[float]] = []
    peaks: list[int] = []
    for checkpointing in (False, True):
        settings = replace(SETTINGS, checkpointing=checkpointing)
        one = support.trainer(tmp_path, support.classification(tmp_path), settings=settings)
        reports = list(one.run(job(LORA)))
        found.append(losses(reports))
        peaks += [row.measurement.peak_bytes for row in reports if row.measurement is not None]
    assert found[0] == found[1], "dropout is the same in the second pass"
    assert peaks[2] < 0.8 * peaks[0]


def test_a_batch_in_parts_gives_the_same_losses_for_less_memory(tmp_path: Path) -> None:
    lora = configuration(setting("lora", (0, 1, 2), rank=4, targets=("attn.c_attn",), alpha=16.0, dropout=0.0))
    found: list[list[float]] = []
    peaks: list[int] = []
    for parts in (1, 5):
        settings = replace(SETTINGS, accumulation=parts)
        task = support.language(tmp_path, text=("prompt", "completion"))
        reports = list(support.trainer(tmp_path, task, model="gpt2", settings=settings).run(job(lora)))
        found.append(losses(reports))
        peaks += [row.measurement.peak_bytes for row in reports if row.measurement is not None]
    assert found[1] == pytest.approx(found[0], rel=1e-5), "each part weighs as many tokens as it has targets"
    assert peaks[2] < 0.8 * peaks[0]


@pytest.mark.parametrize("term", ["density", "ggpo_sigma"])
def test_checkpointing_is_refused_beside_what_looks_into_the_layers(term: str) -> None:
    with pytest.raises(SpecError, match=r"training.checkpointing: got True; allowed: false beside density and ggpo"):
        check_settings(replace(SETTINGS, checkpointing=True, **{term: 0.1}))  # type: ignore[arg-type]  # a weight
    with pytest.raises(SpecError, match=r"training.accumulation: got 0; allowed: 1 or more"):
        check_settings(replace(SETTINGS, accumulation=0))
