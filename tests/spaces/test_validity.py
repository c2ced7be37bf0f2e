"""A space proposes nothing that a method refuses: every value is asked, not the ends of a range alone."""

import numpy as np
import pytest

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.methods import METHODS
from autopeft.spaces.space import SearchSpace
from tests.spaces.builders import bind

Block = dict[str, object]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"boft": {"block_size": "choice(0, 3, 4)"}}, r"space\.boft\.block_size: 3 does not divide"),
        ({"boft": {"block_size": "int(1, 4)"}}, r"space\.boft\.block_size: 3 does not divide the width 32 .* 16, 32,"),
        ({"c3a": {"block_size": "choice(2, 5, 8)"}}, r"space\.c3a\.block_size: 5 does not divide"),
        ({"oft": {"block_size": "per_layer(choice(2, 6, 8))"}}, r"space\.oft\.block_size: 6 does not divide"),
        ({"binary_lora": {"rank": 4, "bits": "int(1, 4)"}}, r"space\.binary_lora\.bits: 3 is not 1, 2 or 4"),
        ({"binary_adapter": {"bottleneck": 4, "bits": "choice(1, 3, 4)"}}, r"space\.binary_adapter\.bits: 3"),
        ({"road": {"enabled": 1, "group_size": "choice(2, 3, 4)"}}, r"space\.road\.group_size: 3 is odd"),
        ({"poly": {"rank": 4, "splits": "choice(3, 4)"}}, r"space\.poly\.splits: 3 does not divide"),
        ({"lokr": {"rank": 4, "factor": "int(-1, 4)"}}, r"space\.lokr\.factor: 0 splits nothing"),
        ({"supertuning": {"enabled": 1, "sparsity": "real(0.5, 0.9999)"}}, r"sparsity: 0\.9999 leaves no entry"),
        ({"fourierft": {"frequencies": "choice(8, 1025)"}}, r"space\.fourierft\.frequencies: 1025 is above the 1024"),
        ({"waveft": {"frequencies": 1025}}, r"space\.waveft\.frequencies: 1025 is above the 1024 of the weight"),
        ({"vblora": {"rank": 4, "vector_length": "choice(5, 8)"}}, r"space\.vblora\.vector_length: 5 does not divide"),
        ({"miss": {"rank": "choice(4, 5, 8)", "mode": "bat"}}, r"space\.miss\.rank: 5 does not divide"),
        ({"adalora": {"rank": "choice(2, 4)", "target_rank": 3}}, r"adalora\.target_rank: 3 leaves nothing of rank 2"),
        ({"hra": {"reflections": "choice(2, 3)", "orthogonalise": True}}, r"hra\.reflections: 2 start as equal pairs"),
    ],
)
def test_a_value_that_never_fits_is_refused_when_the_space_is_read(mapping: Block, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space(mapping)


@pytest.mark.parametrize(
    ("mapping", "n"),
    [
        ({"gralora": {"rank": "choice(2, 4, 6)", "blocks": "choice(2, 4)"}}, 4),
        ({"adalora": {"rank": "choice(2, 4)", "target_rank": "choice(1, 3)"}}, 3),
        ({"cartridge": {"length": "choice(2, 4)", "frozen": "choice(0, 1, 3)"}}, 5),
        ({"adamss": {"rank": "choice(2, 8)", "subspace_rank": "choice(1, 4)"}}, 3),
        ({"miss": {"rank": "choice(4, 5)", "mode": "choice(balance, bat)"}}, 3),
        ({"hra": {"reflections": "choice(2, 3)", "orthogonalise": "bool"}}, 3),
    ],
)
def test_values_that_fit_together_are_proposed_and_no_others(mapping: Block, n: int) -> None:
    made = space(mapping)
    listed = list(made.configurations())
    assert len(listed) == n
    assert set(made.sample(np.random.default_rng(0), 40 * n)) == set(listed)
    assert made.size().configurations > n
    assert made.size().rules[-1] == "settings-fit"


def test_of_too_many_combinations_each_is_asked_as_it_is_drawn() -> None:
    made = space({"gralora": {"rank": "int(1, 24)", "blocks": "int(1, 8)", "hybrid_rank": "int(0, 100)"}})
    assert made.size().rules[-1] == "settings-fit"
    for row in made.sample(np.random.default_rng(0), 60):
        for setting in row:
            for layer in setting.layers:
                METHODS[setting.method].check(made.shape, layer=layer, values=setting.at(layer) or {})
    with pytest.raises(ConfigurationError, match=r"gralora\.blocks: 3 does not divide the width 32"):
        made.check(made.assemble({"gralora.rank": 3, "gralora.blocks": 3, "gralora.hybrid_rank": 1}))


def space(mapping: Block) -> SearchSpace:
    return bind(mapping, n_layers=2, hidden=32)
