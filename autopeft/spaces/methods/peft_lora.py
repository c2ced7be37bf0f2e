"""LoRA with the variants and initialisations of Hugging Face PEFT."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import final

from autopeft.spaces.methods.bridged import (
    RANK,
    TARGETS,
    AbstractBridged,
    Values,
    at_most_width,
    below_width,
    choice,
    dropout,
    flag,
    number,
    real,
)
from autopeft.spaces.methods.method import RateRange
from autopeft.spaces.model_shape import Site

VARIANTS = ("plain", "dora", "kasa", "ffa", "mica")
INITS = ("kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva", "corda_ipm", "corda_kpm", "lora_ga")
TAKING_OUT = ("pissa", "olora", "corda_ipm", "corda_kpm", "lora_ga")
"""Initialisations that take their factors out of the weight."""
FROM_DATA = ("eva", "corda_ipm", "corda_kpm", "lora_ga")
"""Initialisations that look at training rows first."""
OWN_INIT = ("dora", "kasa", "ffa", "mica")
"""Variants that go with an initialisation which leaves the weight as it is; kasa and mica bring their own."""
_INIT_WORDS: Mapping[str, object] = MappingProxyType(
    {name: name.partition("_")[0] if name.startswith("corda") else name for name in INITS} | {"kaiming": True}
)


def _options(values: Values) -> dict[str, object]:
    variant, init = values["variant"], str(values["init"])
    config: dict[str, object] = {"init_lora_weights": _INIT_WORDS[init]}
    if init.startswith("corda"):
        config["corda_config"] = {"corda_method": init.removeprefix("corda_")}
    elif init == "lora_ga":
        config["lora_ga_config"] = {}
    if variant == "dora":
        config["use_dora"] = True
    elif variant == "mica":
        config["init_lora_weights"] = "mica"
    elif variant == "ffa":
        config["freeze_a"] = True
    elif variant == "kasa":
        config["kasa_config"] = {"beta": values["kasa_beta"], "gamma": values["kasa_gamma"]}
    return config


def _rule(site: Site, values: Values) -> tuple[str, str, str] | None:
    variant, init, rank = str(values["variant"]), str(values["init"]), number(values, "rank")
    if variant in OWN_INIT and init in TAKING_OUT:
        return "init", f"{init} takes its factors out of the weight, which {variant} needs whole", "use init kaiming"
    if variant in ("kasa", "mica") and init != "kaiming":
        return "init", f"{variant} has an initialisation of its own, got {init}", "use init kaiming"
    if init == "orthogonal" and rank % 2:
        return "rank", f"{rank} is odd, init orthogonal needs an even one", f"use rank {rank + 1}"
    width = min(site.d_in, site.d_out)
    if init == "lora_ga" and 2 * rank > width:
        return (
            "rank",
            f"twice {rank} is above the width {width}, init lora_ga needs both",
            f"use ranks up to {width // 2}",
        )
    return below_width(site, values) if variant == "kasa" else at_most_width(site, values)


@final
class PeftLora(AbstractBridged):
    """y += s B A dropout(x), s = alpha / rank; `variant` and `init` say which LoRA of the PEFT library.

    Variants: dora trains the norm of each row of the sum apart from its direction; kasa drops the `rank` smallest
    singular directions of the weight and trains a diagonal between B and A, with its loss; ffa trains B alone; mica
    trains A alone, B being the smallest left singular vectors. pissa and olora start from the weight's largest
    directions and take them out of it; corda does so with the directions that matter most (ipm) or least (kpm) to the
    inputs of the map, lora_ga with those of the loss's gradient, and eva starts A from the inputs' principal
    components. With `rslora`, s = alpha / sqrt(rank).
    """

    name = "peft_lora"
    peft_type = "LORA"
    coupled = True
    source = "Hugging Face PEFT; DoRA (arXiv 2402.09353), KaSA (arXiv 2412.06071), PiSSA (arXiv 2404.02948) and others"
    learning_rates = RateRange(
        low=2e-5,
        high=2.2e-3,
        source="as lora; KaSA 3e-4 to 5e-4; starts from the singular values (corda, lora_ga) 2e-5",
    )
    fields = (
        RANK,
        TARGETS,
        real("alpha", 16.0, low=1e-6, text="scale is alpha / rank, or alpha / sqrt(rank) with rslora"),
        dropout("of the input of A"),
        choice("variant", *VARIANTS, text="which LoRA"),
        choice("init", *INITS, text="how A and B start"),
        flag("rslora", text="scale by the root of the rank"),
        real("kasa_beta", 1e-4, high=10.0, text="weight of kasa's loss of the diagonal"),
        real("kasa_gamma", 1e-3, high=10.0, text="weight of kasa's loss of orthogonality"),
    )
    columns = MappingProxyType({"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora"})
    options = staticmethod(_options)
    rule = staticmethod(_rule)
