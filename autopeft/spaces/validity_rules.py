"""Rules between dimensions: combinations that can be written down but not trained as they are meant.

A method's own limits (a rank above a width, a divisor) are in its `check`. What stands here couples methods with each
other or with training settings. A space never proposes what breaks a rule; a hand-written configuration that does is
refused with the rule's name.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration, Scalar
from autopeft.spaces.factors import FACTORED
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.training import TRAINING_FIELDS

LOW_RANK: Final = ("binary_lora", "lora", "lora_group", "mola", "s2_lora", "slora")
"""Methods that add a low-rank update to the weights of a linear map, beside `peft_lora`."""
COUPLED: Final = tuple(name for name, method in METHODS.items() if method.coupled)
"""Methods whose `check` refuses combinations of settings, not only sizes; the rest is settled when a space is bound."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One table row."""

    name: str
    meaning: str
    """One sentence for the documentation."""
    concerns: tuple[str, ...]
    """Methods and training settings of which one must be there for the rule to say anything."""
    problem: Callable[[Configuration], str]
    """What is wrong, beginning with the place; empty when the rule holds."""
    hint: str
    where: Callable[[AbstractMethod], bool] = lambda method: True
    """It says something only where such a method can be there."""

    def holds(self, configuration: Configuration) -> bool:
        return not self.problem(configuration)


def _settings(configuration: Configuration) -> Mapping[str, Scalar]:
    return dict(configuration.training)


def _has_factors(configuration: Configuration) -> bool:
    return any(setting.method in FACTORED for setting in configuration)


def _needs_factors(name: str, off: Collection[Scalar]) -> Callable[[Configuration], str]:
    def problem(configuration: Configuration) -> str:
        value = _settings(configuration).get(name)
        if value is None or value in off or _has_factors(configuration):
            return ""
        methods = ", ".join(setting.method for setting in configuration)
        return f"{name}: {value} acts on the factors A and B of low-rank pairs, which {methods} does not have"

    return problem


def _noise_without_lora(configuration: Configuration) -> str:
    for name in ("ggpo_sigma", "ggpo_beta"):
        value = _settings(configuration).get(name)
        if value and configuration.method("lora") is None:
            return f"{name}: {value} puts noise on the targets of lora, which this configuration does not have"
    return ""


def _variants(configuration: Configuration) -> tuple[str, ...]:
    """Different variants of `peft_lora` on the layers of `configuration`."""
    setting = configuration.method("peft_lora")
    return () if setting is None else tuple(dict.fromkeys(str(value) for value in setting.column("variant")))


def _kasa_alone(configuration: Configuration) -> str:
    variants = _variants(configuration)
    if "kasa" not in variants:
        return ""
    others = [name for name in variants if name != "kasa"]
    others += [setting.method for setting in configuration if setting.method in LOW_RANK]
    return f"peft_lora.variant: kasa cuts the base weights, beside {', '.join(others)}" if others else ""


def _trained_factor(configuration: Configuration) -> str:
    if _settings(configuration).get("optimizer") != "lora_fa" or "mica" not in _variants(configuration):
        return ""
    return "optimizer: lora_fa freezes the factors A, which are all that peft_lora.variant mica trains"


def _allocated(configuration: Configuration) -> str:
    """AdaLoRA moves one budget over all its targets by one schedule, from gradients of all of them in every step."""
    setting = configuration.method("adalora")
    if setting is None:
        return ""
    for name in ("warmup_share", "final_share", "interval", "smoothing"):
        if len(set(setting.column(name))) > 1:
            return f"adalora.{name}: differs by layer, and one schedule moves the ranks of all"
    sampling = _settings(configuration).get("layer_sampling", "none")
    return "" if sampling == "none" else f"layer_sampling: {sampling} leaves layers out whose ranks adalora must judge"


def _hidden_activations(configuration: Configuration) -> str:
    settings = _settings(configuration)
    watching = [name for name in ("density", "ggpo_sigma", "ggpo_beta") if settings.get(name)]
    if not watching or not settings.get("checkpointing"):
        return ""
    seen = f"{watching[0]} {settings[watching[0]]} looks into their first pass"
    return f"checkpointing: true computes layers twice, and {seen}"


def _unscaled(method: AbstractMethod) -> bool:
    return not method.suppressible


def _unscaled_importance(configuration: Configuration) -> str:
    if _settings(configuration).get("layer_sampling") != "importance":
        return ""
    found = [setting.method for setting in configuration if _unscaled(METHODS[setting.method])]
    return f"layer_sampling: importance scales every response, and that of {found[0]} cannot be" if found else ""


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="adalora-sees-all-layers",
        meaning="`adalora` moves one budget over all its targets: one schedule for all layers, and no layer sampling.",
        concerns=("adalora",),
        problem=_allocated,
        hint="give the schedule one value for all layers and use layer_sampling none, or another method",
    ),
    Rule(
        name="lora-fa-needs-factors",
        meaning="`optimizer: lora_fa` needs a method with low-rank factors.",
        concerns=("optimizer",),
        problem=_needs_factors("optimizer", ("adamw", "galore")),
        hint="use optimizer adamw, or add a method such as lora",
    ),
    Rule(
        name="lora-plus-needs-factors",
        meaning="A `lora_plus_ratio` other than 1 needs a method with low-rank factors.",
        concerns=("lora_plus_ratio",),
        problem=_needs_factors("lora_plus_ratio", (1.0,)),
        hint="use a ratio of 1, or add a method such as lora",
    ),
    Rule(
        name="ggpo-needs-lora",
        meaning="`ggpo_sigma` and `ggpo_beta` above 0 put noise on the targets of `lora`, which must be there.",
        concerns=("ggpo_sigma", "ggpo_beta"),
        problem=_noise_without_lora,
        hint="set both to 0, or add lora",
    ),
    Rule(
        name="lora-fa-leaves-something",
        meaning="`optimizer: lora_fa` freezes the only factor that the variant `mica` of `peft_lora` trains.",
        concerns=("optimizer",),
        problem=_trained_factor,
        hint="use optimizer adamw, or another variant",
    ),
    Rule(
        name="kasa-alone",
        meaning="The variant `kasa` of `peft_lora` truncates the base weights: no other low-rank update beside it, and"
        " no other variant on other layers.",
        concerns=("peft_lora",),
        problem=_kasa_alone,
        hint="use kasa on all layers and no other low-rank method, or another variant",
    ),
    Rule(
        name="checkpointing-hides-activations",
        meaning="`checkpointing` goes with none of `density`, `ggpo_sigma` and `ggpo_beta`, which look into the layers'"
        " first pass.",
        concerns=("checkpointing",),
        problem=_hidden_activations,
        hint="set checkpointing to false, or the others to 0",
    ),
    Rule(
        name="importance-needs-a-response",
        meaning="`layer_sampling: importance` probes layers by scaling the response of every method on them, which"
        " methods at the input do not allow.",
        concerns=("layer_sampling",),
        problem=_unscaled_importance,
        hint="use layer_sampling random or none, or leave that method out",
        where=_unscaled,
    ),
)
"""Every rule, in the order in which they are asked."""


RULED_SETTINGS: Final = tuple(
    dict.fromkeys(("density", *(name for rule in RULES for name in rule.concerns if name in TRAINING_FIELDS)))
)
"""Training settings that rules ask for."""


def relevant(names: Collection[str], shape: ModelShape, uneven: Collection[str] = COUPLED) -> tuple[Rule, ...]:
    """The rules that may say something where these methods and training settings can occur on a model of `shape`.

    Args:
        names: Methods and training settings.
        shape: The model.
        uneven: Methods of which some combinations of settings may not fit.
    """
    methods = [METHODS[name] for name in names if name in METHODS]
    rules = tuple(
        rule for rule in RULES if any(name in names for name in rule.concerns) and any(map(rule.where, methods))
    )
    coupled = tuple(name for name in COUPLED if name in names and name in uneven)
    return (*rules, _fitting(coupled, shape)) if coupled else rules


def _fitting(names: tuple[str, ...], shape: ModelShape) -> Rule:
    """The methods' own checks as a rule, for those whose settings limit each other; asked of what a space proposes."""

    def problem(configuration: Configuration) -> str:
        try:
            for setting in configuration:
                for layer in setting.layers if setting.method in names else ():
                    METHODS[setting.method].check(shape, layer=layer, values=setting.at(layer) or {})
        except ConfigurationError as error:
            return error.message
        return ""

    return Rule(
        name="settings-fit",
        meaning="Settings of one method that limit each other: a variant and its initialisations, a rank and what"
        " divides it, experts and how many of them act.",
        concerns=names,
        problem=problem,
        hint="change one of the two settings",
    )


def check_rules(configuration: Configuration, rules: Collection[Rule] = RULES) -> None:
    """Raise ConfigurationError for the first of `rules` that `configuration` breaks."""
    for rule in rules:
        problem = rule.problem(configuration)
        if problem:
            raise ConfigurationError(f"{problem} (rule {rule.name})", hint=rule.hint)
