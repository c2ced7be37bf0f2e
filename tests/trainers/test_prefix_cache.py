"""Entering the base at the lowest adapted layer: equal results, less computed, within a budget."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autopeft.spaces.configuration import Configuration
from autopeft.trainers.prefix import FrozenPrefix, lowest_layer
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.images import write_folder
from tests.models import MODELS
from tests.trainers import support, test_image_tasks
from tests.trainers.packed.support import HEAD, MOLA, QUERY_VALUE, by_slot, job, one_pass, same

TOP = configuration(setting("lora", (2,), rank=4, targets=QUERY_VALUE, alpha=16.0, dropout=0.2))
BOTTOM = configuration(setting("lora", (0,), rank=4, targets=QUERY_VALUE, alpha=16.0, dropout=0.2))
NONE = {"prefix_bytes": 0}


def trainer_in(folder: Path, **settings: object) -> Trainer:
    fields = replace(support.SETTINGS, batch_size=8, **settings)  # type: ignore[arg-type]  # by name
    return support.trainer(folder, support.classification(folder, n=26), settings=fields)


@contextmanager
def counted(trainer: Trainer, layer: int) -> Iterator[list[int]]:
    """Rows of each call of a layer."""
    calls: list[int] = []
    module = trainer.loaded.model.get_submodule(f"bert.encoder.layer.{layer}")
    handle = module.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("config", [TOP, HEAD, MOLA], ids=["lora", "head", "mola"])
def test_a_trial_that_enters_the_model_higher_is_the_same_trial(config: Configuration, tmp_path: Path) -> None:
    whole = list(trainer_in(tmp_path, **NONE).run(job((config,), epochs=3)))
    entered = trainer_in(tmp_path)
    with counted(entered, 0) as calls:
        same(list(entered.run(job((config,), epochs=3))), whole)
        n_rows = len(entered.tokens("train")) + len(entered.tokens("validation"))
        assert sum(calls) == n_rows + 2 * 4, "every row once, and a few to see that it works"
        list(entered.run(job((config,), epochs=3)))
        assert sum(calls) == n_rows + 2 * 4, "the next trial finds them"


def test_packs_read_what_is_kept_and_neighbours_below_run_all(tmp_path: Path) -> None:
    configs = (TOP, HEAD, MOLA, BOTTOM)
    expected = by_slot(trainer_in(tmp_path, **NONE).run(job(configs)))
    with one_pass():
        for slots in (configs, configs[:3]):
            packed = by_slot(trainer_in(tmp_path).run(job(slots, at_once=4)))
            for slot, own in packed.items():
                same(own, expected[slot])


def test_without_a_budget_a_pack_still_reads_the_validation_rows_once(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, **NONE)
    with one_pass(), counted(trainer, 0) as calls:
        list(trainer.run(job((TOP, TOP, TOP), at_once=3, epochs=1)))
    n_train = len(trainer.tokens("train"))
    assert sum(calls) <= 3 * n_train + len(trainer.tokens("validation")) + 2 * 4
    assert trainer._prefix is not None
    assert trainer._prefix.n_bytes == 0


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    splits = trainer.tokens("train"), trainer.tokens("validation")
    n_bytes = [int(split.lengths.sum()) * 32 * 4 for split in splits]
    prefix = FrozenPrefix(trainer.loaded, trainer._task, budget=sum(n_bytes) + n_bytes[1], pad_id=0)
    for cut in (1, 2, 1, 3):
        assert prefix.prepare(cut, splits) == cut
        assert prefix.n_bytes <= sum(n_bytes) + n_bytes[1]
    assert {cut for cut, _ in prefix._kept} == {1, 3} or {cut for cut, _ in prefix._kept} == {3}
    small = FrozenPrefix(trainer.loaded, trainer._task, budget=min(n_bytes), pad_id=0)
    assert small.prepare(2, splits) == 2
    assert small.n_bytes == min(n_bytes), "one of the splits fits"


@pytest.mark.parametrize("name", [name for name in MODELS if name != "albert"])
def test_every_architecture_is_entered_or_known_not_to_be(name: str, tmp_path: Path) -> None:
    trainer = support.trainer(tmp_path, support.classification(tmp_path, n=26), model=name)
    split = trainer.tokens("train")
    prefix = FrozenPrefix(trainer.loaded, trainer._task, budget=1 << 20, pad_id=0)
    rows = np.array([3, 1, 7, 3])
    for cut in range(1, trainer.shape.n_layers + 1):
        entered = prefix.prepare(cut, [split])
        assert entered == cut
        (batch,) = support_batches(trainer, rows)
        with torch.no_grad():
            whole, _ = trainer._task.outputs(trainer.loaded.model, batch, torch.device("cpu"))
            with prefix.entering(entered, split, rows):
                found, _ = trainer._task.outputs(trainer.loaded.model, batch, torch.device("cpu"))
        torch.testing.assert_close(found, whole, atol=2e-5, rtol=2e-5)
    assert not any("_call_impl" in module.__dict__ for module in trainer.loaded.model.modules())


def support_batches(trainer: Trainer, rows: np.ndarray) -> Sequence[object]:
    from autopeft.trainers.batches import batches_of

    return list(batches_of(trainer.tokens("train"), [rows], pad_id=0))


def test_a_model_that_runs_one_layer_again_and_again_is_run_whole(tmp_path: Path) -> None:
    trainer = support.trainer(tmp_path, support.classification(tmp_path, n=26), model="albert")
    prefix = FrozenPrefix(trainer.loaded, trainer._task, budget=1 << 20, pad_id=0)
    assert prefix.prepare(1, [trainer.tokens("train")]) == 0


def test_images_enter_higher_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    trainer = test_image_tasks.trainer(tmp_path, test_image_tasks.task(str(write_folder(tmp_path / "shapes", 40))))
    assert list(trainer.run(job((configuration(),))))[-1].failure is None
    assert trainer._prefix is not None
    assert trainer._prefix.n_bytes > 0


def test_what_looks_into_lower_layers_or_changes_the_input_enters_at_the_first() -> None:
    settings = support.SETTINGS
    assert lowest_layer(TOP, settings, n_layers=3) == 2
    assert lowest_layer(configuration(), settings, n_layers=3) == 3
    prompt = configuration(setting("prompt_tuning", (0,), length=3))
    assert lowest_layer(prompt, settings, n_layers=3) == 0
    for field, value in (("density", 0.1), ("measure_density", True), ("checkpointing", True)):
        assert lowest_layer(TOP, replace(settings, **{field: value}), n_layers=3) == 0  # type: ignore[arg-type]
