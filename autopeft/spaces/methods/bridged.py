"""Methods that Hugging Face PEFT implements: their fields, the configuration they become, and the shared checks."""

from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue, MethodSetting
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind
from autopeft.spaces.methods.rules import size_of, target_sites
from autopeft.spaces.model_shape import ModelShape, Role, Site
from autopeft.spaces.peft_counts import SITE_COUNTS

Values = Mapping[str, FieldValue]
Rule = Callable[[Site, Values], tuple[str, str, str] | None]
"""Of a site and the values there: the field that does not fit, what is wrong with it, and what to write instead."""

TARGETS: Field = Field(
    name="targets", kind=FieldKind.TARGETS, default=("query-value",), help="linear maps of the layer"
)
ENABLED: Field = Field(name="enabled", kind=FieldKind.SIZE, default=None, low=0, high=1, help="1 where it is present")
RANK: Field = Field(name="rank", kind=FieldKind.SIZE, default=None, low=0, help="rank of the update")


def anything(site: Site, values: Values) -> tuple[str, str, str] | None:
    """The rule that every site passes."""
    del site, values


class AbstractBridged(AbstractMethod, ABC):
    """One peft type as a method; a subclass says which, and holds no logic of its own."""

    peft_type: ClassVar[str]
    """Value of peft's `PeftType`."""
    columns: ClassVar[Mapping[str, str]]
    """Our field to the field of peft's configuration that takes its value as it is."""
    constants: ClassVar[Mapping[str, object]] = MappingProxyType({})
    """Fields of peft's configuration with one value for this method."""
    options: ClassVar[Callable[[Values], Mapping[str, object]]] = staticmethod(lambda values: {})
    """Further fields of peft's configuration, from all values."""
    by_site: ClassVar[Callable[[Site, Values], Mapping[str, object]]] = staticmethod(lambda site, values: {})
    """Fields of peft's configuration that differ by map, of one map; only for types that are built map by map."""
    read_site: ClassVar[Callable[[Mapping[str, object], Site], Mapping[str, FieldValue]]] = staticmethod(
        lambda config, site: {}
    )
    """Our fields that `by_site` stands for, from peft's configuration at a map."""
    rule: ClassVar[Rule] = staticmethod(anything)
    mergeable: ClassVar[bool] = True
    """Whether it is a change of the map's weight and bias."""
    by_batch: ClassVar[bool] = False
    """Whether what it makes of a row depends on the rows beside it."""
    shared: ClassVar[Callable[[Mapping[str, object], tuple[Site, ...]], int] | None] = None
    """Trainable numbers that the targets of layers with equal settings have in common, from these targets."""

    def peft_config(self, values: Values, *, sites: tuple[Site, ...]) -> dict[str, object]:
        """Keyword arguments of peft's configuration class for these `values` on `sites`, without targets.

        What differs by map is in it where `sites` is one map.
        """
        config = {column: values[field] for field, column in self.columns.items()}
        config |= {**self.constants, **self.options(values)}  # type: ignore[call-arg]  # a static method held in a class variable
        if self.peft_type == "IA3":
            config["feedforward_modules"] = [site.name for site in sites if site.role is Role.MLP_DOWN]
        return config | (self.by_site(sites[0], values) if len(sites) == 1 else {})  # type: ignore[call-arg]  # as above

    def parameters(self, shape: ModelShape, *, layer: int, values: Values) -> int:
        sites = target_sites(self.name, shape, layer=layer, values=values)
        return sum(self.site_parameters(site, values) for site in sites)

    def site_parameters(self, site: Site, values: Values) -> int:
        """Trainable numbers at one linear map, those that it shares with others left out."""
        config = self.peft_config(values, sites=(site,))
        config["is_feedforward"] = site.role is Role.MLP_DOWN
        frozen = site.d_in * size_of(self.name, "rank", values) if config.pop("freeze_a", False) else 0
        count = SITE_COUNTS.get(self.peft_type)
        return count(config, site) - frozen if count else 0

    def shared_parameters(self, shape: ModelShape, setting: MethodSetting) -> int:
        if self.shared is None:
            return 0
        shared = self.shared
        return sum(shared(config, sites) for config, sites in self.groups(shape, setting))  # type: ignore[call-arg]  # a static method held in a class variable

    def groups(
        self, shape: ModelShape, setting: MethodSetting
    ) -> Iterator[tuple[Mapping[str, object], tuple[Site, ...]]]:
        """The layers of `setting` with equal settings but their targets, as a configuration and all target sites."""
        members: dict[tuple[tuple[str, FieldValue], ...], list[Site]] = {}
        for layer in setting.layers:
            values = setting.at(layer) or {}
            key = settings_key(values)
            members.setdefault(key, []).extend(target_sites(self.name, shape, layer=layer, values=values))
        for key, sites in members.items():
            yield self.peft_config(dict(key), sites=tuple(sites)), tuple(sites)

    def check(self, shape: ModelShape, *, layer: int, values: Values) -> None:
        size = size_of(self.name, self.size_field.name, values)
        if self.size_field.high is not None and size > self.size_field.high:
            raise ConfigurationError(
                f"{self.name}.{self.size_field.name}: {size} is neither 0 nor 1", hint="write 1; it has no size"
            )
        for site in target_sites(self.name, shape, layer=layer, values=values):
            broken = self.rule(site, values)  # type: ignore[call-arg]  # a static method held in a class variable
            if broken:
                field, problem, fix = broken
                raise ConfigurationError(
                    f"{self.name}.{field}: {problem} at {site.name} in layer {layer}",
                    hint=f"{fix}, or leave {site.name} out of the targets",
                )


def settings_key(values: Values) -> tuple[tuple[str, FieldValue], ...]:
    """What layers that form one peft model have in common: all fields but the targets."""
    return tuple(sorted((name, value) for name, value in values.items() if name != "targets"))


def number(values: Values, field: str) -> int:
    """The whole number in `values[field]`."""
    value = values[field]
    assert isinstance(value, int)
    return value


def real(name: str, default: float, *, low: float = 0.0, high: float = 1e6, text: str) -> Field:
    return Field(name=name, kind=FieldKind.REAL, default=default, low=low, high=high, help=text)


def integer(name: str, default: int, *, low: int = 1, high: int = 65536, text: str) -> Field:
    return Field(name=name, kind=FieldKind.INTEGER, default=default, low=low, high=high, help=text)


def choice(name: str, *choices: str, text: str) -> Field:
    """A category whose default is the first choice."""
    return Field(name=name, kind=FieldKind.CATEGORY, default=choices[0], choices=choices, help=text)


def flag(name: str, *, default: bool = False, text: str) -> Field:
    return Field(name=name, kind=FieldKind.BOOL, default=default, help=text)


def peft_names(**fields: str) -> Mapping[str, str]:
    """Our field names to peft's."""
    return MappingProxyType(fields)


def size(name: str, text: str) -> Field:
    return Field(name=name, kind=FieldKind.SIZE, default=None, low=0, help=text)


def dropout(text: str = "of the adapter's input", *, high: float = 0.99) -> Field:
    return real("dropout", 0.0, high=high, text=text)


def divisors(number_: int, *, limit: int = 8) -> str:
    """The divisors of a width as text; of many the smallest."""
    found = [d for d in range(1, number_ + 1) if number_ % d == 0]
    return ", ".join(map(str, found[:limit])) + (", ..." if len(found) > limit else "")


def at_most_width(site: Site, values: Values) -> tuple[str, str, str] | None:
    """The rank is no larger than the narrower side of the map."""
    width = min(site.d_in, site.d_out)
    if number(values, "rank") > width:
        return "rank", f"{values['rank']} is above the width {width}", f"use ranks up to {width}"
    return None


def below_width(site: Site, values: Values) -> tuple[str, str, str] | None:
    """The rank leaves at least one direction of the map."""
    width = min(site.d_in, site.d_out)
    if number(values, "rank") >= width:
        return "rank", f"{values['rank']} is not below the width {width}", f"use ranks up to {width - 1}"
    return None


def no_more_than_entries(site: Site, values: Values) -> tuple[str, str, str] | None:
    """There are as many frequencies as the map has weights, and no more."""
    n_entries = site.d_in * site.d_out
    if number(values, "frequencies") > n_entries:
        return (
            "frequencies",
            f"{values['frequencies']} is above the {n_entries} of the weight",
            f"use up to {n_entries}",
        )
    return None


def divides(field: str, *, d_in: bool = False, d_out: bool = False) -> Rule:
    """A rule: `values[field]` divides the input width, the output width, or both."""

    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        wanted = number(values, field)
        widths = [site.d_in] * d_in + [site.d_out] * d_out
        bad = next((width for width in widths if width % wanted), None)
        if bad is None:
            return None
        common = _common(widths)
        return field, f"{wanted} does not divide the width {bad}", f"use one of {divisors(common)}"

    return rule


def _common(widths: list[int]) -> int:
    result = widths[0]
    for width in widths[1:]:
        while width:
            result, width = width, result % width
    return result
