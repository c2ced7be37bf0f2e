"""Peft's initialisations that look at data, given what was gathered at one map.

CorDA's decomposition and LoRA-GA's are peft's own; both take their factors out of the weight. EVA's rows of A are the
components gathered; the rank is what the configuration says (peft's `rho` of 1: ranks are dimensions of the search).
LoRA-GA is peft's: A has unit singular vectors, B is scaled by the gradient's singular values too, where the paper's B
has unit vectors (Wang et al. 2024, arXiv 2407.05000).

Shapes: I and O the map's input and output width, R rank.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

import torch
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from autopeft.trainers.adapters.site_facts import FactKind, Need, finite

if TYPE_CHECKING:
    from peft.tuners.lora.corda import CordaEigens

ADAPTER: Final = "default"
_KINDS: Final[Mapping[object, FactKind]] = {
    "corda": FactKind.COVARIANCE,
    "eva": FactKind.COMPONENTS,
    "lora_ga": FactKind.GRADIENT,
}


def need(config: Mapping[str, object], *, rank: int) -> Need:
    """What the initialisation in peft's `config` must be told."""
    return Need(kind=_KINDS[config["init_lora_weights"]], rank=rank)


def without_data(config: Mapping[str, object]) -> Mapping[str, object]:
    """`config` with the usual initialisation instead of one from data: tensors of the same shapes."""
    if config.get("init_lora_weights") not in _KINDS:
        return config
    return {key: value for key, value in config.items() if key not in ("corda_config", "lora_ga_config")} | {
        "init_lora_weights": True
    }


def prepare(linear: nn.Linear, config: Mapping[str, object], fact: torch.Tensor) -> None:
    """Put beside the weight of `linear` what peft will look for there.

    Raises:
        DivergedError: The decomposition is not finite.
    """
    init = config["init_lora_weights"]
    if init == "lora_ga":
        linear._peft_loraga_grad = fact  # type: ignore[assignment]  # peft looks for it under this name
    elif init == "corda":
        linear.covariance_matrix = fact  # type: ignore[assignment]  # the same
        # It needs the package attrs, which peft does not ask for; other initialisations do without.
        from peft.tuners.lora.corda import collect_eigens_for_layer

        eigens = collect_eigens_for_layer(linear, LoraConfig())
        del linear.covariance_matrix
        linear.eigens = _cropped(eigens, config)  # type: ignore[assignment]  # the same


def finish(layer: BaseTunerLayer, config: Mapping[str, object], fact: torch.Tensor) -> None:
    """Give the rows of A that EVA found to `layer`; rows beyond them stay as drawn."""
    if config["init_lora_weights"] == "eva":
        a_RI = cast("nn.Module", layer).get_submodule(f"lora_A.{ADAPTER}").weight
        assert isinstance(a_RI, torch.Tensor)
        a_RI[: len(fact)].copy_(fact[: len(a_RI)])


def _cropped(eigens: "CordaEigens", config: Mapping[str, object]) -> "CordaEigens":
    """The R components that CorDA's method takes: `ipm` the largest, `kpm` the smallest."""
    method, rank = config["corda_config"], config["r"]
    assert isinstance(method, CordaConfig)
    assert isinstance(rank, int)
    kept = slice(0, rank) if method.corda_method == "ipm" else slice(len(eigens.S_WC) - rank, len(eigens.S_WC))
    device = eigens.S_WC.device
    return type(eigens)(
        S_WC=finite(eigens.S_WC[kept].clone()),
        U_WC=finite(eigens.U_WC[:, kept].clone().to(device)),
        V_WC=finite(eigens.V_WC[:, kept].clone().to(device)),
    )
