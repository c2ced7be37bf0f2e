"""The peak of a model of many equal layers, from the peaks of the same model with two, three and four of them.

With equal layers, equally adapted, what is alive at an event of the step is linear in the number of layers: so much for
each layer whose forward pass is over, so much for each whose backward pass is. The peak is the largest of these lines,
and so is every line's slope: nothing, what a layer keeps for the backward pass, or its gradients. Where the peak of
few layers is on a line that is steeper than that of the gradients it is on the steepest, which it stays on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from autopeft.objectives.memory import MemoryBreakdown
from autopeft.spaces.peft_counts import SITE_COUNTS
from autopeft.trainers.checkpoint import by_layer
from autopeft.trainers.described import DescribedModel
from autopeft.trainers.kinds_of_layer import module_mark
from autopeft.trainers.sites import layers_of

DEPTHS: Final = (2, 3, 4)
_INPUT: Final = ("LN_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PROMPT_TUNING", "TRAINABLE_TOKENS")
"""PEFT types besides those of single maps that treat all layers alike."""
_TIED: Final = ("LILY", "TINYLORA", "UNILORA")
"""PEFT types whose tensors are shared out among the layers by their number."""
_UNEVEN: Final = (
    *("layers_to_transform", "layers_pattern", "layer_replication", "target_parameters"),
    *("proportional_parameters", "exclude_modules", "monteclora_config", "arrow_config"),
)
"""Fields that tell one layer from another."""


def treats_layers_alike(config: Mapping[str, object]) -> bool:
    """Whether an `adapter_config.json` adapts all layers of a model in the same way; False where that is not sure."""
    kind = str(config.get("peft_type")).rpartition(".")[2].upper()
    if kind in _TIED or (kind not in SITE_COUNTS and kind not in _INPUT):
        return False
    uneven = any(config.get(name) for name in config if name in _UNEVEN or name.endswith("_pattern"))
    if uneven and not (kind == "ADALORA" and not any(config.get(name) for name in _UNEVEN)):
        return False
    words = [word for name in ("target_modules", "modules_to_save") for word in _words(config.get(name))]
    return not any(character.isdigit() for word in words for character in word)


def _words(value: object) -> Sequence[str]:
    """The names in a list of modules; a pattern, which may tell layers apart, as a name with a number."""
    if isinstance(value, str):
        return [value] if value == "all-linear" else ["0"]
    return [str(word) for word in value] if isinstance(value, Sequence) else []


def has_equal_layers(described: DescribedModel) -> bool:
    """Whether a model is a single chain of more layers than `DEPTHS` needs, all alike, and can be described shorter."""
    shape, config = described.shape, described.model.config
    if shape.image is not None or shape.decoder_layers or shape.n_layers <= DEPTHS[-1]:
        return False
    if getattr(config, "num_hidden_layers", None) != shape.n_layers or config.get_text_config() is not config:
        return False
    if any(len(set(map(repr, row))) > 1 for _, row in by_layer(config, shape.n_layers)):
        return False
    return len({module_mark(layer) for layer in layers_of(described.model.base_model, shape)}) == 1


def deepened(
    peaks: Sequence[MemoryBreakdown], *, gradients: Sequence[int], n_layers: int, cuda: bool
) -> MemoryBreakdown | None:
    """The peak with `n_layers` layers; None where those of few layers do not say.

    Args:
        peaks: With as many layers as `DEPTHS` has.
        gradients: Bytes of all gradients in each.
        n_layers: How many there are.
        cuda: The peaks are an allocator's, in which gradients come as others go.
    """
    rows = [asdict(peak) for peak in peaks]
    slopes = {part: rows[-1][part] - rows[-2][part] for part in rows[0]}
    if any(rows[1][part] - rows[0][part] != slope for part, slope in slopes.items()):
        return None
    alive = sum(slopes[part] for part in ("gradients", "activations", "logits", "workspace"))
    if cuda and alive <= gradients[-1] - gradients[-2]:
        return None
    more = n_layers - DEPTHS[-1]
    return MemoryBreakdown(**{part: rows[-1][part] + more * slope for part, slope in slopes.items()})
