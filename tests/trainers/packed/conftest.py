"""What tests of whole packs share."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from autopeft.trainers.trainer import Trainer
from tests.trainers import support
from tests.trainers.packed.support import one_pass


@pytest.fixture
def together() -> Iterator[None]:
    """Slots share a pass whatever their lengths."""
    with one_pass():
        yield


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("packed")
    settings = replace(support.SETTINGS, batch_size=8)
    return support.trainer(folder, support.classification(folder, n=26), settings=settings)
