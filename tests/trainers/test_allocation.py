"""AdaLoRA's ranks: where they end, when they move, and what is left when the adapter is taken away."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration, FieldValue
from autopeft.spaces.validity_rules import check_rules
from autopeft.trainers.allocation import RankAllocation, allocation_of
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.job import ModelSpec, TrainJob
from autopeft.trainers.model import load_model
from autopeft.trainers.peft_folder import write_folder
from autopeft.trainers.saved import load_adapter
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.models import MODELS
from tests.trainers import support

TARGETS = MODELS["bert"].query_value
LAYERS = (0, 2)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("allocation")
    return support.trainer(folder, support.classification(folder))


def adalora(**fields: FieldValue | list[FieldValue]) -> Configuration:
    usual: dict[str, FieldValue | list[FieldValue]] = {"rank": 4, "target_rank": 2, "interval": 1, "targets": TARGETS}
    return configuration(setting("adalora", LAYERS, **(usual | fields)))


def ranks(adapters: AdapterSet) -> list[int]:
    """Entries of E that are left at each target."""
    return [int((row != 0).sum()) for name, row in adapters.state_dict().items() if "lora_E" in name]


def stepped(trainer: Trainer, config: Configuration, *, n_steps: int) -> list[list[int]]:
    """Ranks after each step of a run whose losses are sums of squares of everything."""
    adapters = inject(trainer.loaded.model, trainer.loaded.shape, config, seed=0)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    allocation = allocation_of(adapters, n_steps=n_steps)
    assert isinstance(allocation, RankAllocation)
    seen: list[list[int]] = []
    for step in range(n_steps):
        torch.stack([(parameter**2).sum() for parameter in adapters.parameters()]).sum().backward()
        allocation.after_step(step)
        adapters.zero_grad()
        seen.append(ranks(adapters))
    adapters.remove()
    return seen


def test_ranks_fall_to_the_budget_and_stay_there(trainer: Trainer) -> None:
    seen = [sum(row) for row in stepped(trainer, adalora(warmup_share=0.25, final_share=0.25), n_steps=40)]
    whole, budget = 4 * 4, 2 * 4
    assert seen[:11] == [whole] * 11, "nothing moves in the warm-up"
    assert all(before >= after for before, after in pairwise(seen))
    assert seen[30:] == [budget] * 10


def test_the_budget_is_one_over_all_targets(trainer: Trainer) -> None:
    (last,) = stepped(trainer, adalora(rank=[6, 3], target_rank=[3, 1]), n_steps=30)[-1:]
    assert sum(last) == 2 * 3 + 2 * 1
    assert len(set(last)) > 1, "targets end with ranks of their own"


@pytest.mark.parametrize("n_steps", [2, 3, 5])
def test_short_runs_reach_the_budget_too(n_steps: int, trainer: Trainer) -> None:
    assert sum(stepped(trainer, adalora(), n_steps=n_steps)[-1]) == 2 * 4


def test_one_step_is_none_in_which_ranks_could_move(trainer: Trainer) -> None:
    adapters = inject(trainer.loaded.model, trainer.loaded.shape, adalora(), seed=0)
    adapters.remove()
    assert allocation_of(adapters, n_steps=1) is None


def test_other_methods_are_left_alone(trainer: Trainer) -> None:
    plain = configuration(setting("lora", (0,), rank=2, targets=TARGETS))
    adapters = inject(trainer.loaded.model, trainer.loaded.shape, plain, seed=0)
    adapters.remove()
    assert allocation_of(adapters, n_steps=9) is None


def test_a_trained_adapter_has_the_ranks_it_ended_with_in_plain_peft(trainer: Trainer, tmp_path: Path) -> None:
    beside = setting("peft_lora", (1,), rank=2, targets=TARGETS)
    mixed = configuration(adalora().methods[0], beside)
    (report,) = list(trainer.run(TrainJob(configurations=(mixed,), seeds=(1,), epochs=1)))
    assert report.failure is None, "peft's own LoRA beside it has tensors of like names"
    own = tmp_path / "own"
    job = TrainJob(configurations=(adalora(),), seeds=(3,), epochs=2, output_dirs=(own,))
    assert [report.failure for report in trainer.run(job)] == [None, None]
    write_folder(own, tmp_path / "peft")
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    total = sum(written["rank_pattern"].get(name, written["r"]) for name in written["target_modules"])
    assert written["peft_type"] == "LORA"
    assert total == 2 * 4
    base = load_model(ModelSpec(name=trainer.loaded.spec.name), kind="text-classification", n_labels=2).model
    ids = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()(input_ids=ids).logits
        torch.testing.assert_close(plain, load_adapter(own)[0](input_ids=ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (adalora(interval=[1, 5]), r"adalora\.interval: differs by layer, .*\(rule adalora-sees-all-layers\)"),
        (
            configuration(adalora().methods[0], layer_sampling="random"),
            r"layer_sampling: random leaves layers out .*\(rule adalora-sees-all-layers\)",
        ),
    ],
)
def test_what_the_schedule_cannot_do_is_refused(config: Configuration, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_rules(config)
