"""Low-rank updates whose two factors serve all targets of a shape, on every layer."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue, MethodSetting
from autopeft.spaces.methods.framed import ALPHA, RANK, TARGETS, factor_parameters
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind
from autopeft.spaces.methods.rules import check_rank, size_of, target_sites
from autopeft.spaces.model_shape import ModelShape


@final
class S2Lora(AbstractMethod):
    """y += (alpha / rank) * B diag(w) A x; w for each target, A and B for all targets of a shape; w starts at zero."""

    name = "s2_lora"
    source = "S2-LoRA, Liu et al. 2023 (arXiv 2309.11756)"
    fields = (
        RANK,
        TARGETS,
        ALPHA,
        Field(
            name="sparsity",
            kind=FieldKind.REAL,
            default=1e-3,
            low=0.0,
            high=1e3,
            help="weight in the loss of the sum of all |w|",
        ),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank = size_of(self.name, "rank", values)
        return factor_parameters(self.name, shape, layer=layer, values=values, core=rank, factors=False)

    def shared_parameters(self, shape: ModelShape, setting: MethodSetting) -> int:
        return sum(rank * (d_in + d_out) for (d_in, d_out), rank in ranks_by_shape(shape, setting).items())

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_rank(self.name, shape, layer=layer, values=values)


def ranks_by_shape(shape: ModelShape, setting: MethodSetting) -> dict[tuple[int, int], int]:
    """For each (d_in, d_out) among the targets of `setting` the largest rank of any layer that has such a target."""
    ranks: dict[tuple[int, int], int] = {}
    for layer in setting.layers:
        values = setting.at(layer)
        assert values is not None
        rank = size_of("s2_lora", "rank", values)
        for site in target_sites("s2_lora", shape, layer=layer, values=values):
            size = site.d_in, site.d_out
            ranks[size] = max(rank, ranks.get(size, 0))
    return ranks
