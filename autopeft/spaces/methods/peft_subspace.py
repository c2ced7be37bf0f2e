"""Types of Hugging Face PEFT that train a low-rank part in few numbers, or inside the weight's own decomposition."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import final

from autopeft.spaces.methods.bridged import (
    TARGETS,
    AbstractBridged,
    Values,
    at_most_width,
    below_width,
    divides,
    dropout,
    integer,
    number,
    peft_names,
    real,
    size,
)
from autopeft.spaces.model_shape import Site
from autopeft.spaces.peft_counts import kept_directions, whole


@final
class Adamss(AbstractBridged):
    """The outputs of the map in `subspaces` clusters, each with a low-rank update of its own in one frozen frame.

    The frame is the weight's `rank` leading right singular directions; rows of the left ones are clustered (K-means).
    """

    name = "adamss"
    peft_type = "ADAMSS"
    source = "Hugging Face PEFT, AdaMSS (adaptive multi-subspace), without its pruning of subspaces"
    coupled = True
    fields = (
        size("rank", "singular directions in the frame"),
        TARGETS,
        integer("subspaces", 5, text="clusters of outputs"),
        integer("subspace_rank", 1, text="of each cluster's update; a cluster has as many outputs or more"),
    )
    columns = peft_names(rank="r", subspaces="num_subspaces", subspace_rank="subspace_rank")

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        clusters, own = number(values, "subspaces"), number(values, "subspace_rank")
        if clusters * own > site.d_out:
            return "subspaces", f"{clusters} with rank {own} ask for more than {site.d_out} outputs", "use fewer"
        if own > number(values, "rank"):
            return "subspace_rank", f"{own} is above the rank {values['rank']} of the frame", "use a smaller one"
        return at_most_width(site, values)


@final
class Osf(AbstractBridged):
    """The weight's `rank` smallest singular directions are trained, away from the others, which stay as they are.

    The gradients of the singular vectors are projected off the directions that stay. A configuration of peft names
    these: its `effective_rank` is the map's narrower width less `rank`.
    """

    name = "osf"
    peft_type = "OSF"
    source = "Nayak et al. 2025 (arXiv 2504.07097), by Hugging Face PEFT"
    fields = (size("rank", "trained singular directions of each target, the smallest"), TARGETS)
    columns = peft_names()
    rule = staticmethod(below_width)

    @staticmethod
    def by_site(  # type: ignore[override]  # stands for the class variable of that name
        site: Site, values: Values
    ) -> Mapping[str, object]:
        return {"effective_rank": min(site.d_in, site.d_out) - number(values, "rank")}

    @staticmethod
    def read_site(  # type: ignore[override]  # stands for the class variable of that name
        config: Mapping[str, object], site: Site
    ) -> Mapping[str, int]:
        return {"rank": min(site.d_in, site.d_out) - kept_directions(config, site)}


@final
class Poly(AbstractBridged):
    """A mixture of `skills` LoRAs with trained weights, each split in `splits` parts that are weighted alone.

    Peft's learns the weights for each of several tasks; a study has one. In training the weights are drawn around the
    learned ones (relaxed Bernoulli), for each row anew.
    """

    name = "poly"
    peft_type = "POLY"
    source = "Ponti et al. 2022 (arXiv 2202.13914), splits of Caccia et al. 2022 (2211.03831), by Hugging Face PEFT"
    fields = (
        size("rank", "of each skill; the update is divided by it"),
        TARGETS,
        integer("skills", 4, text="LoRAs in the mixture"),
        integer("splits", 1, text="parts with weights of their own; divides both widths"),
    )
    columns = peft_names(rank="r", skills="n_skills", splits="n_splits")
    constants = MappingProxyType({"n_tasks": 1})

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        return divides("splits", d_in=True, d_out=True)(site, values) or at_most_width(site, values)


@final
class UniLora(AbstractBridged):
    """LoRA whose factors repeat the numbers of one vector, which all targets of equal settings share."""

    name = "unilora"
    peft_type = "UNILORA"
    source = "Li et al. 2025 (arXiv 2506.00799), by Hugging Face PEFT"
    fields = (
        size("length", "numbers in the vector: all that is trained"),
        TARGETS,
        integer("rank", 4, text="of the factors"),
        real("start", 0.02, low=1e-6, high=1e3, text="they start between this and its negative"),
        dropout(),
    )
    columns = peft_names(rank="r", length="theta_d_length", start="init_theta_d_bound", dropout="unilora_dropout")
    rule = staticmethod(at_most_width)

    @staticmethod
    def shared(  # type: ignore[override]  # stands for the class variable of that name
        config: Mapping[str, object], sites: tuple[Site, ...]
    ) -> int:
        return whole(config, "theta_d_length", 256)
