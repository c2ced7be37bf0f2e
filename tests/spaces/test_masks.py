"""Sets of layers, against enumeration."""

from itertools import product

import numpy as np
import pytest

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces import bool_, choice, from_, int_, range_, subset, top
from autopeft.spaces.canonical import configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.language import read_layers
from autopeft.spaces.layer_sets import LayerSet
from autopeft.spaces.masks import START, AbstractMask, bind_mask
from tests.spaces.builders import bind
from tests.spaces.twins import every_network

SETS: dict[str, LayerSet] = {
    "subset": subset(),
    "subset(min=2, max=3)": subset(min=2, max=3),
    "range": range_(),
    "range(min=2)": range_(min=2),
    "range(min=2, max=3)": range_(min=2, max=3),
    "top(int(1, 4))": top(int_(1, 4)),
    "top(choice(3, 1))": top(choice(3, 1)),
    "from(int(0, 2))": from_(int_(0, 2)),
    "from(choice(0, 3))": from_(choice(0, 3)),
}


def expected(layers: LayerSet, n: int) -> set[tuple[int, ...]]:
    """All sets of a mask, from what its name says."""
    name, *numbers = str(layers).replace("(", " ").replace(")", "").replace(",", "").split()
    everything = [tuple(row for row in range(n) if bits[row]) for bits in product((0, 1), repeat=n)]
    least = getattr(layers, "min", 1)
    most = getattr(layers, "max", None) or n
    if name in ("subset", "range"):
        sized = {rows for rows in everything if least <= len(rows) <= most}
        return {rows for rows in sized if name == "subset" or rows[-1] - rows[0] + 1 == len(rows)}
    listed = [int(number) for number in numbers[1:]]
    values = range(listed[0], listed[1] + 1) if numbers[0] == "int" else listed
    return {tuple(range(n - value if name == "top" else value, n)) for value in values}


def walked(mask: AbstractMask, n: int) -> list[tuple[int, ...]]:
    """All sets by the mask's automaton."""
    paths: list[tuple[tuple[int, ...], int]] = [((), START)]
    for position in range(n):
        paths = [
            ((*rows, position) if inside else rows, after)
            for rows, state in paths
            for inside, after in mask.ways(position, state)
        ]
    return [rows for rows, state in paths if mask.accepts(state)]


@pytest.mark.parametrize("text", SETS)
@pytest.mark.parametrize("n", [4, 5])
def test_the_automaton_walks_every_set_once(text: str, n: int) -> None:
    mask = bind_mask(SETS[text], n)
    assert mask is not None
    sets = walked(mask, n)
    assert len(set(sets)) == len(sets)
    assert set(sets) == expected(SETS[text], n)
    for bits in product((False, True), repeat=n):
        rows = tuple(row for row in range(n) if bits[row])
        assert mask.admits(rows, n) == (rows in sets)
    for rows in sets:
        spelled = mask.spell(rows)
        assert tuple(mask.on(lambda cell, spelled=spelled: spelled[cell.name])) == rows
    assert len(mask.extreme(most=True)) == max(map(len, sets))
    assert len(mask.extreme(most=False)) == min(map(len, sets))
    assert {tuple(mask.extreme(most=most)) for most in (True, False)} <= set(sets)


@pytest.mark.parametrize("text", SETS)
def test_text_and_objects_mean_the_same_and_are_written_back(text: str) -> None:
    assert read_layers(text) == SETS[text]
    definition = SpaceDefinition.from_mapping({"layers": text, "lora": {"rank": 2}})
    assert SpaceDefinition.from_mapping(definition.to_mapping()) == definition
    assert SpaceDefinition.from_mapping({"layers": SETS[text], "lora": {"rank": 2}}).layers == SETS[text]


@pytest.mark.parametrize("text", SETS)
@pytest.mark.parametrize("rank", ["choice(0, 2)", "per_layer(choice(0, 1, 2))"])
def test_spaces_over_sets_of_layers_are_counted_spelt_and_connected(text: str, rank: str) -> None:
    space = bind({"layers": text, "lora": {"rank": rank}, "prefix_tuning": {"length": "choice(0, 1)"}}, n_layers=4)
    networks = every_network(space)
    assert space.size().configurations == len(networks)
    assert set(space.configurations()) == networks
    for network in networks:
        assert network.adapted_layers in expected(SETS[text], 4)
        assert space.decode(space.encode(network)) == network
        assert space.assemble(space.spell(network)) == network
    start = min(networks, key=lambda network: network.id)
    reached, fresh = {start}, [start]
    while fresh:
        fresh = [other for network in fresh for other in space.neighbours(network) if other not in reached]
        reached |= set(fresh)
        fresh = list(dict.fromkeys(fresh))
    assert reached == networks


def test_the_ends_of_a_range_are_drawn_in_either_order() -> None:
    space = bind({"layers": "range", "lora": {"rank": 2}}, n_layers=6)
    one = space.assemble({"layers.first": 4, "layers.last": 1})
    assert one.adapted_layers == (1, 2, 3, 4)
    assert space.spell(one) == {"layers.first": 1, "layers.last": 4}
    assert space.size().configurations == 6 * 7 // 2


def test_a_range_on_a_deep_model_is_counted_in_closed_form() -> None:
    for n, text, count in ((80, "range", 3240), (80, "range(min=10, max=20)", sum(81 - k for k in range(10, 21)))):
        assert bind({"layers": text, "lora": {"rank": 2}}, n_layers=n).size().configurations == count


@pytest.mark.parametrize(("text", "layers"), [("top(2)", (2, 3)), ("from(1)", (1, 2, 3)), ("top(4)", (0, 1, 2, 3))])
def test_fixed_numbers_are_a_list_of_layers(text: str, layers: tuple[int, ...]) -> None:
    space = bind({"layers": text, "lora": {"rank": "per_layer(choice(0, 2))"}}, n_layers=4)
    assert space.structure.layers == layers
    assert space.size().configurations == 2 ** len(layers) - 1


def test_a_model_of_one_layer_leaves_nothing_to_choose() -> None:
    space = bind({"layers": "range", "lora": {"rank": "choice(2, 4)"}}, n_layers=1)
    assert [row.name for row in space.dimensions] == ["lora.rank"]
    assert space.contains(space.sample(np.random.default_rng(0), 1)[0])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("range(min=3, max=2)", r"space\.layers: range\(min=3, max=2\): min is above max"),
        ("range(min=0)", r"min is 0, not a whole number from 1"),
        ("range(1, 2)", r"space\.layers: .*: range of layers takes min and max by name alone \(write range, or"),
        ("subset(2)", r"subset of layers takes min and max by name alone \(write subset, or subset\(min=1"),
        ("0-2", r"column 2 of '0-2': '-2' follows a complete value \(write all, subset\(min=1, max=4\), range"),
        ("[0, 2]", r"'\[' has no meaning here \(write all, .* or a list such as"),
        ("top(int(1, 2)", r"a call without its end \(inside YAML braces a call must be quoted"),
        ("top", r"top needs one argument.*write top\(int"),
        ("from(1, 2)", r"from needs one argument"),
        ("top(0)", r"top\(0\): 0 is no whole number from 1"),
        ("top(choice(1, 2.5))", r"2\.5 is no whole number"),
        ("top(real(1, 2))", r"top\(\.\.\.\) does not take these arguments"),
        ("from(-1)", r"-1 is no whole number from 0"),
        ("top(bool)", "does not take these arguments"),
    ],
)
def test_malformed_sets_name_place_value_and_fix(layers: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        SpaceDefinition.from_mapping({"layers": layers, "lora": {"rank": 2}})


def test_a_set_of_other_things_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"top\(bool\): takes whole numbers, not bool"):
        top(bool_())  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("range(min=5)", r"space\.layers: range\(min=5\) on a model of 4 layers.*at most 4"),
        ("top(int(1, 12))", r"space\.layers: top\(int\(1, 12\)\) on a model of 4 layers.*largest number there is 4"),
        ("from(4)", r"from\(4\) on a model of 4 layers.*largest number there is 3"),
    ],
)
def test_models_with_too_few_layers_are_refused(layers: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        bind({"layers": layers, "lora": {"rank": 2}}, n_layers=4)


def test_layers_outside_the_set_are_refused() -> None:
    space = bind({"layers": "range", "lora": {"rank": 2}}, n_layers=4)
    gap = configuration({"lora": {"rank": 2, "layers": [0, 2]}}, space.shape)
    with pytest.raises(ConfigurationError, match=r"layers: 2 are adapted, outside range.*others than 0, 2"):
        space.check(gap)
