"""Packs as a whole: equal to training alone, isolated, refilled, stopped."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autopeft.trainers.job import AbstractSlots, Report, TrainJob
from autopeft.trainers.packed.pack import Pack
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.images import write_folder
from tests.trainers import test_image_tasks
from tests.trainers.packed.support import HEAD, LORA, MIXED, PREFIX, SERIAL, by_slot, job, same
from tests.trainers.test_prompt_tasks import trainer_of

WILD = replace(LORA, training=(("learning_rate", 1e30),))


pytestmark = pytest.mark.usefixtures("together")


@pytest.fixture(scope="module")
def alone(trainer: Trainer) -> dict[int, list[Report]]:
    """What each of `MIXED`, and then of it again with other seeds, reports alone."""
    return by_slot(trainer.run(job((*MIXED, *MIXED, *MIXED[:2]))))


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_a_pack_of_any_size_trains_as_one_by_one(n: int, trainer: Trainer, alone: dict[int, list[Report]]) -> None:
    before = torch.random.get_rng_state()
    some = (*MIXED, *MIXED, *MIXED[:2])[:n]
    reports = by_slot(trainer.run(job(some, at_once=max(2, n))))
    assert torch.equal(torch.random.get_rng_state(), before), "the process's random state is left alone"
    assert sorted(reports) == list(range(n))
    for slot, own in reports.items():
        same(own, alone[slot])


def test_the_held_out_split_is_scored_with_each_slots_own_head(trainer: Trainer) -> None:
    some = (LORA, HEAD)
    packed = by_slot(trainer.run(job(some, at_once=2, evaluate_test=True)))
    for slot, own in by_slot(trainer.run(job(some, evaluate_test=True))).items():
        assert [sorted(report.test_metrics) for report in packed[slot]] == [[], ["accuracy", "loss"]]
        assert packed[slot][-1].test_metrics["loss"] == pytest.approx(own[-1].test_metrics["loss"], rel=1e-5)
        assert packed[slot][-1].test_draws == own[-1].test_draws


def test_the_base_runs_once_for_all(trainer: Trainer) -> None:
    calls: list[int] = []
    layer = trainer.loaded.model.get_submodule("bert.encoder.layer.0")
    handle = layer.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    try:
        list(trainer.run(job((LORA, PREFIX, LORA), at_once=3, epochs=1)))
    finally:
        handle.remove()
    n_rows = len(trainer.tokens("train"))
    assert sum(calls) == 3 * (n_rows + 40)
    # Each slot's largest step is run apart, where its memory is measured; validation is one pass.
    assert len(calls) <= -(-n_rows // 8) + 3 + 1
    assert max(calls) == 3 * 40


def test_the_model_is_left_as_it_was(trainer: Trainer) -> None:
    model = trainer.loaded.model
    before = {name: value.clone() for name, value in model.base_model.state_dict().items()}
    implementation = model.config._attn_implementation
    running = trainer.run(job(MIXED, at_once=7))
    next(running)
    running.close()  # type: ignore[attr-defined]  # a generator
    assert all(torch.equal(before[name], value) for name, value in model.base_model.state_dict().items())
    assert not any(module._forward_hooks or "_call_impl" in module.__dict__ for module in model.modules())
    assert model.config._attn_implementation == implementation
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_diverging_neighbour_changes_nothing(trainer: Trainer, alone: dict[int, list[Report]]) -> None:
    reports = by_slot(trainer.run(job((LORA, WILD, PREFIX), at_once=3)))
    assert reports[1][-1].failure is not None
    assert reports[1][-1].failure[0] == "diverged"
    assert "lower the learning rate" in reports[1][-1].failure[1]
    same(reports[0], list(alone[0]))
    same(reports[2], list(trainer.run(replace(job((PREFIX,)), seeds=(5,)))))


class Script(AbstractSlots):
    """Stops some slots after their first report, and has some more to train."""

    def __init__(self, *, stops: Sequence[int] = (), more: Sequence[TrainJob] = ()) -> None:
        self.stops, self.more = stops, list(more)

    def stopped(self, slot: int) -> bool:
        return slot in self.stops

    def refill(self) -> TrainJob | None:
        return self.more.pop(0) if self.more else None


def test_free_slots_are_filled_while_others_run(trainer: Trainer, alone: dict[int, list[Report]]) -> None:
    later = [replace(job((MIXED[slot],)), seeds=(3 + slot,)) for slot in (4, 5)]
    reports = list(trainer.run(job(MIXED[:4], at_once=2), Script(stops=(0, 2), more=later)))
    assert {report.slot for report in reports[:2]} == {0, 1}
    found = by_slot(reports)
    assert [len(found[slot]) for slot in range(6)] == [1, 2, 1, 2, 2, 2]
    for slot, own in found.items():
        same(own, alone[slot][: len(own)])


def test_what_cannot_share_the_base_runs_alone_in_between(trainer: Trainer) -> None:
    prompt = configuration(setting("prompt_tuning", (0,), length=3))
    sampled = replace(LORA, training=(("layer_sampling", "random"),))
    configs = (LORA, prompt, sampled, SERIAL)
    reports = by_slot(trainer.run(job(configs, at_once=2)))
    for slot, own in by_slot(trainer.run(job(configs))).items():
        same(reports[slot], own)


def test_what_does_not_fit_together_is_run_in_parts(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_slot(trainer.run(job(MIXED[:4])))
    run, sizes = Pack._outputs, []

    def limited(self: Pack, slots: Sequence[object], *rest: object) -> object:
        sizes.append(len(slots))
        if len(slots) > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
        return run(self, slots, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Pack, "_outputs", limited)
    reports = by_slot(trainer.run(job(MIXED[:4], at_once=4)))
    assert max(sizes) > 1
    for slot, own in expected.items():
        same(reports[slot], own)


def test_what_does_not_fit_alone_fails_by_itself(trainer: Trainer, alone: dict[int, list[Report]]) -> None:
    class Greedy(nn.Module):
        def forward(self, *_: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    run = Pack.join

    def joined(self: Pack, key: int, begin: object) -> object:
        slot = run(self, key, begin)  # type: ignore[arg-type]
        if key == 1:
            slot.member.heads.update({name: Greedy() for name in slot.member.heads})
        return slot

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pack, "join", joined)
        reports = by_slot(trainer.run(job(MIXED[:3], at_once=3)))
    assert reports[1][0].failure is not None
    assert reports[1][0].failure[0] == "oom"
    for slot in (0, 2):
        same(reports[slot], alone[slot])


def test_a_deadline_counts_a_slots_own_share(trainer: Trainer) -> None:
    tight = replace(job((LORA,)), settings={"deadline_seconds": 1e-6})
    reports = by_slot(trainer.run(job((SERIAL,), at_once=2), Script(more=[tight])))
    assert reports[1][0].failure is not None
    assert reports[1][0].failure[0] == "timeout"
    assert reports[0][-1].failure is None


def test_an_adapter_saved_from_a_pack_scores_the_same_again(trainer: Trainer, tmp_path: Path) -> None:
    folders = tuple(tmp_path / str(slot) for slot in range(3))
    reports = by_slot(trainer.run(job((LORA, PREFIX, HEAD), at_once=3, output_dirs=folders)))
    for slot, folder in enumerate(folders):
        last = reports[slot][-1].measurement
        assert last is not None
        assert trainer.evaluate(folder, "validation") == pytest.approx(dict(last.metrics), rel=1e-5)


def beside(trainer: Trainer) -> None:
    """A configuration in a pack of three is what it is alone."""
    sites = tuple(site.name for site in trainer.shape.layers[0][:2])
    config = configuration(setting("lora", (0, 1), rank=2, targets=sites, dropout=0.3))
    some = (config, configuration(), replace(config, training=(("learning_rate", 2e-3),)))
    packed = by_slot(trainer.run(job(some, at_once=3, epochs=1)))
    for slot, own in by_slot(trainer.run(job(some, epochs=1))).items():
        same(packed[slot], own)


@pytest.mark.parametrize(
    "kind", ["causal-lm", "multiple-choice", "seq2seq", "text-classification", "token-classification"]
)
def test_every_kind_of_task_is_packed(kind: str, tmp_path: Path) -> None:
    beside(trainer_of(kind, tmp_path))


def test_images_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    beside(test_image_tasks.trainer(tmp_path, test_image_tasks.task(str(write_folder(tmp_path / "shapes", 40)))))
