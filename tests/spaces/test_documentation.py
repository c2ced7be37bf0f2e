"""Every form that docs/search-space.md shows is read, and means what the page says it means."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from autopeft import spaces
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.language import read_layers, read_spread
from autopeft.spaces.methods import METHODS
from autopeft.spaces.presets import preset_names
from autopeft.spaces.space import SearchSpace
from tests.spaces import builders

PAGE = (Path(__file__).parents[2] / "docs" / "search-space.md").read_text(encoding="utf-8")
SHAPE = builders.shape(12, hidden=48, heads=4)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Cells of the first table under a heading, its head left out."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def python(text: str) -> object:
    """What an expression of the page makes, with the names of `autopeft.spaces`."""
    names: ModuleType = spaces
    return eval(text, {name: getattr(names, name) for name in names.__all__})  # text of our own page


@pytest.mark.parametrize("row", rows("Domains")[:-1], ids=lambda row: row[0])
def test_text_and_python_of_a_domain_are_the_same(row: list[str]) -> None:
    (text,), (made,) = code(row[0]), code(row[1])
    assert read_spread(text) == read_spread(python(made))


def test_plain_values_are_fixed() -> None:
    for text in code(rows("Domains")[-1][0]):
        assert not getattr(read_spread(yaml.safe_load(text)).domain, "levels", None)


@pytest.mark.parametrize("row", rows("Spread over depth"), ids=lambda row: row[0])
def test_every_spread_is_read_and_comes_back(row: list[str]) -> None:
    first, *others = [read_spread(text) for text in code(row[0])]
    assert read_spread(str(first)) == first
    assert all(other == first for other in others)


@pytest.mark.parametrize("text", [text for row in rows("Layers") for text in code(row[0])])
def test_every_set_of_layers_binds(text: str) -> None:
    value = yaml.safe_load(text)
    space = SearchSpace.bind(SpaceDefinition.from_mapping({"layers": value, "lora": {"rank": 2}}), SHAPE)
    assert space.size().configurations >= 1
    if isinstance(value, str) and value != "all":
        assert read_layers(str(read_layers(value))) == read_layers(value)


def test_the_table_of_methods_is_true() -> None:
    for names, size, others in rows("Methods"):
        for name in code(names):
            method = METHODS[name]
            assert [method.size_field.name] == code(size)
            fields = [field for field in method.fields if field is not method.size_field]
            assert [field.name for field in fields] == code(others)
            for field, shown in zip(fields, re.findall(r"\(([^)]*)\)", others), strict=True):
                default = field.default[0] if isinstance(field.default, tuple) else str(field.default)
                assert shown.partition(";")[0] == default, (name, field.name)


def test_presets_that_are_named_are_there() -> None:
    named = {text for row in rows("Presets") for text in code(row[0])}
    whole = {name if not name.startswith("-") else f"llm-adapters{name}" for name in named}
    assert whole == set(preset_names())


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_example_is_a_space(block: str) -> None:
    data = yaml.safe_load(block)
    if "space" in data:
        SearchSpace.bind(SpaceDefinition.from_mapping(data["space"]), SHAPE)
    elif "constraints" in data:
        space = {"lora": {"rank": "choice(2, 4)"}}
        SearchSpace.bind(
            SpaceDefinition.from_mapping(space), SHAPE, constraints=data["constraints"], quantities={"memory": float_of}
        )
    else:
        SpaceDefinition.from_mapping({"lora": {"rank": "choice(0, 4, 8)"}, **data})


def float_of(_: object) -> float:
    return 1.0


def test_the_python_example_runs() -> None:
    (text,) = blocks("python")
    names: dict[str, object] = {"shape": SHAPE}
    exec(text, names)  # text of our own page
    assert names["others"]
