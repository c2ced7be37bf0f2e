"""What every method promises in a pack: the same losses as alone, dropout and all, whatever its neighbours are."""

from dataclasses import replace

import pytest

from autopeft.spaces.configuration import Configuration
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import FieldKind
from autopeft.trainers.job import Report, TrainJob
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.conformance.test_methods import sizes_of
from tests.models import MODELS
from tests.trainers import support
from tests.trainers.packed.support import by_slot, one_pass, same

SLOTS = 16


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("packs")
    settings = replace(support.SETTINGS, learning_rate=5e-3, batch_size=8)
    return support.trainer(folder, support.classification(folder, n=26), settings=settings)


def of_method(method: str, trainer: Trainer) -> Configuration:
    """`method` on two layers, with dropout where it has any."""
    known, shape = METHODS[method], trainer.shape
    layers = (0,) if known.at_input else (0, 2)
    fields: dict[str, object] = {known.size_field.name: list(sizes_of(method, shape)[: len(layers)])}
    if any(field.kind is FieldKind.TARGETS for field in known.fields):
        fields["targets"] = MODELS["bert"].query_value
    if any(field.name == "dropout" for field in known.fields):
        fields["dropout"] = 0.2
    return configuration(setting(method, layers, **fields))  # type: ignore[arg-type]  # values by field


@pytest.fixture(scope="module")
def packed(trainer: Trainer) -> dict[str, list[Report]]:
    """What every method reported in packs of all methods."""
    found: dict[str, list[Report]] = {}
    with one_pass():
        for first in range(0, len(METHODS), SLOTS):
            some = list(METHODS)[first : first + SLOTS]
            configurations = tuple(of_method(method, trainer) for method in some)
            job = TrainJob(configurations=configurations, seeds=tuple(range(len(some))), epochs=1, at_once=SLOTS)
            reports = by_slot(trainer.run(job))
            found |= {method: reports[slot] for slot, method in enumerate(some)}
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_in_a_pack_as_it_does_alone(
    method: str, trainer: Trainer, packed: dict[str, list[Report]]
) -> None:
    seed = list(METHODS).index(method) % SLOTS
    alone = TrainJob(configurations=(of_method(method, trainer),), seeds=(seed,), epochs=1)
    same(packed[method], list(trainer.run(alone)))
