"""Routed experts: counts, and what cannot be built."""

import pytest

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.counts import ParameterCounter
from autopeft.spaces.methods import METHODS
from tests.spaces.builders import GATED, bind, shape

BASE = shape(4, hidden=48, sites=GATED, kv_heads=4, family="llama")


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ({"experts": 2, "rank": 4}, 4 * 2 * (4 * (48 + 48) + 48 + 4 * (48 + 16) + 48)),
        ({"experts": [2, 3, 0, 5], "rank": 1, "targets": "query"}, 10 * (48 + 48 + 48)),
        ({"experts": 3, "rank": [1, 2], "layers": [0, 3], "targets": "mlp_down"}, 3 * (3 * (192 + 48) + 2 * 192)),
        ({"experts": 1, "top_k": 1, "targets": "key", "layers": [0]}, 8 * (48 + 16) + 48),
    ],
)
def test_every_expert_has_a_pair_and_a_router_row(source: dict[str, object], count: int) -> None:
    assert ParameterCounter(BASE)(configuration({"mola": source}, BASE)) == count


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"experts": 1}, r"mola\.top_k: 2 of 1 experts in layer 0 \(use a top_k of at most 1, or 2 experts or more"),
        ({"experts": [4, 2, 4, 4], "top_k": 3}, r"mola\.top_k: 3 of 2 experts in layer 1"),
        ({"experts": 2, "rank": 17, "targets": "key"}, r"mola\.rank: 17 is above the width 16 of self_attn\.k_proj"),
        ({"experts": 2, "rank": 0}, r"mola\.rank: got 0, a value outside 1 to"),
        ({"experts": 2, "top_k": 0}, r"mola\.top_k: got 0, a value outside 1 to"),
    ],
)
def test_what_cannot_be_routed_is_refused(source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        configuration({"mola": source}, BASE)
    assert caught.value.hint


def test_a_rank_beside_the_size_is_a_whole_number_from_one() -> None:
    values = {"experts": 2, "top_k": 2, "rank": 0, "targets": ("self_attn.q_proj",)}
    with pytest.raises(ConfigurationError, match=r"mola\.rank: 0 is not a whole number from 1"):
        METHODS["mola"].check(BASE, layer=0, values=values)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"experts": "choice(0, 1, 2, 4)"}, r"space\.mola\.top_k: 2 of 1 experts"),
        ({"experts": "choice(0, 2, 4)", "top_k": "int(1, 5)"}, r"space\.mola\.top_k: 5 of 4 experts"),
        ({"experts": "choice(0, 2)", "top_k": 3}, r"space\.mola\.top_k: 3 of 2 experts"),
        ({"experts": "groups(2, 4, 6, 1)"}, r"space\.mola\.top_k: 2 of 1 experts in layer 3"),
        ({"experts": 2, "rank": "choice(8, 64)"}, r"space\.mola\.rank: 64 is above the width 24"),
    ],
)
def test_a_space_whose_choices_could_not_be_built_is_refused(block: dict[str, object], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        bind({"mola": block}, n_layers=4)


def test_experts_and_how_many_of_them_act_are_searched_together() -> None:
    space = bind({"mola": {"experts": "choice(0, 2, 4)", "top_k": "int(1, 3)"}}, n_layers=4)
    assert space.size().rules == ("settings-fit",)
    rows = [setting for row in space.configurations() for setting in row]
    pairs = {(row.column("experts")[0], row.column("top_k")[0]) for row in rows}
    assert pairs == {(2, 1), (2, 2), (4, 1), (4, 2), (4, 3)}
    with pytest.raises(ConfigurationError, match=r"mola\.top_k: 3 of 2 experts in layer 0 \(rule settings-fit\)"):
        space.check(space.assemble({"mola.experts": 2, "mola.top_k": 3}))
    assert bind({"mola": {"experts": "choice(0, 2, 4)"}}, n_layers=4).size().rules == (), "nothing there can be wrong"


def test_the_encoding_of_surrogates_spans_ranks_beside_the_size() -> None:
    space = bind({"mola": {"experts": "per_layer(choice(0, 2, 4))", "rank": "choice(1, 4, 16)"}})
    counts = [space.features(configuration)[-1] for configuration in space.configurations()]
    assert min(counts) == 0.0
    assert max(counts) == 1.0
    assert len(set(counts)) > 9
