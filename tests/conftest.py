"""The suite never asks the network: a hub id that is not here fails at once.

Every trainer that is closed collects garbage, which goes through all objects there are. What is there between two test
files (the libraries, above all) is there to stay and is left out of that.
"""

import gc
import os
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_finish() -> None:
    _settle()


@pytest.fixture(scope="module", autouse=True)
def _settled() -> Iterator[None]:
    yield
    _settle()


def _settle() -> None:
    gc.collect()
    gc.freeze()
