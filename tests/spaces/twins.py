"""Brute-force twins and random small spaces."""

from itertools import product

from hypothesis import assume
from hypothesis import strategies as st

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace
from tests.spaces.builders import bind

MAX_ASSIGNMENTS = 6000


def n_assignments(space: SearchSpace) -> int:
    total = 1
    for dimension in space.dimensions:
        total *= len(dimension.levels or (0,))
    return total


def every_network(space: SearchSpace) -> set[Configuration]:
    """All networks of a space without continuous dimensions, by assembling every assignment of its dimensions."""
    names = [dimension.name for dimension in space.dimensions]
    found: set[Configuration] = set()
    for levels in product(*(dimension.levels or () for dimension in space.dimensions)):
        try:
            found.add(space.assemble(dict(zip(names, levels, strict=True))))
        except ConfigurationError:
            continue
    return found


SIZES = (
    "choice(0, 1)",
    "choice(0, 2, 3)",
    "choice(1, 2)",
    "choice(0, 1, 2, 4)",
    "int(0, 2)",
    "int(1, 2)",
    "3",
    "groups(0, 2)",
)
CATEGORIES = ("choice(relu, gelu)", "gelu", "groups(relu, gelu)")
REALS = ("choice(1, 2)", "2", "groups(1, 2)")
TARGETS = (
    "subset(query, key)",
    "subset(query, value, max=1)",
    "choice(attention, mlp)",
    "[query]",
    "groups(query, mlp)",
)
CONDITIONS = (
    "serial_adapter",
    "not serial_adapter",
    "serial_adapter.bottleneck > 1",
    "serial_adapter.bottleneck == 0",
    "serial_adapter.activation == gelu",
    "serial_adapter.activation in (relu, silu) or batch_size >= 32",
    "batch_size == 16 and not serial_adapter.bottleneck in (1, 2)",
)

RATES = ("choice(0.001, 0.01)", "1e-3")
RATE_CONDITIONS = ("serial_adapter.learning_rate > 2e-3", "not serial_adapter.learning_rate == 0.01")
LORA_CONDITIONS = (
    "lora",
    "not lora",
    "lora.rank == 2",
    "not lora.rank < 2 and batch_size > 16",
    "lora or serial_adapter",
)


@st.composite
def spreads(draw: st.DrawFn, domains: tuple[str, ...], *, ramps: bool = True) -> object:
    domain = draw(st.sampled_from(domains))
    if domain == "[query]":
        return ["query"]
    if "(" not in domain or domain.startswith("groups"):
        return domain
    kinds = ["{}", "{}", "per_layer({})", "per_group(2, {})"]
    ramped = ramps and not domain.startswith("subset") and any(digit in domain for digit in "012")
    kind = draw(st.sampled_from([*kinds, "ramp({})"] if ramped else kinds))
    return kind.format(domain)


@st.composite
def mappings(draw: st.DrawFn) -> dict[str, object]:
    """A small space: any mask, spreads, sub-dimensions and conditions."""
    mapping: dict[str, object] = {
        "layers": draw(
            st.sampled_from(
                [
                    "all",
                    "subset",
                    "subset",
                    "subset(min=2)",
                    "subset(max=2)",
                    "range",
                    "range(min=2, max=3)",
                    "top(int(1, 3))",
                    "top(choice(1, 3))",
                    "from(int(0, 2))",
                    [0, 2],
                    [1],
                ]
            )
        ),
        "serial_adapter": {"bottleneck": draw(spreads(SIZES))},
    }
    if draw(st.booleans()):
        mapping["serial_adapter"] |= {"activation": draw(spreads(CATEGORIES, ramps=False))}  # type: ignore[operator]
    if draw(st.booleans()):
        mapping["serial_adapter"] |= {"scale": draw(spreads(REALS))}  # type: ignore[operator]
    asked = CONDITIONS
    if draw(st.booleans()):
        mapping["serial_adapter"] |= {"learning_rate": draw(st.sampled_from(RATES))}  # type: ignore[operator]
        asked += RATE_CONDITIONS
    if draw(st.booleans()):
        lora = {"rank": draw(spreads(SIZES)), "targets": draw(spreads(TARGETS, ramps=False))}
        mapping["lora"] = lora
        if draw(st.booleans()):
            lora["learning_rate"] = draw(st.sampled_from(RATES))
        if draw(st.booleans()):
            lora["when"] = draw(st.sampled_from(asked))
    if draw(st.booleans()):
        mapping["prefix_tuning"] = {"length": draw(spreads(SIZES))}
        if draw(st.booleans()):
            asked += LORA_CONDITIONS if "lora" in mapping else ()
            mapping["prefix_tuning"] |= {"when": draw(st.sampled_from(asked))}  # type: ignore[operator]
    if draw(st.booleans()) or "batch_size" in str(mapping):
        mapping["batch_size"] = "choice(16, 32)"
    return mapping


@st.composite
def spaces(draw: st.DrawFn, limit: int = MAX_ASSIGNMENTS) -> SearchSpace:
    """A random small space with at most `limit` raw assignments."""
    mapping = draw(mappings())
    try:
        space = bind(mapping, n_layers=draw(st.sampled_from([3, 4])))
    except SpaceError as error:
        refused = ("holds no network", "groups of 1 layers", "layer to layer", "no single levels")
        assert any(reason in str(error) for reason in refused), error  # noqa: PT017
        assume(False)
        raise
    assume(n_assignments(space) <= limit)
    return space
