"""Low-rank and shared-basis types of Hugging Face PEFT beside LoRA, each as a method: a class is a row of a table."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, final

from autopeft.spaces.methods.bridged import (
    RANK,
    TARGETS,
    AbstractBridged,
    Values,
    at_most_width,
    choice,
    divides,
    dropout,
    flag,
    integer,
    number,
    peft_names,
    real,
    size,
)
from autopeft.spaces.methods.method import RateRange
from autopeft.spaces.model_shape import Site
from autopeft.spaces.peft_counts import share, whole

MODULE_DROPOUT: Final = real("module_dropout", 0.0, high=0.9, text="chance that a map's update is left out of a step")


def _fewer(site: Site, values: Values) -> tuple[str, str, str] | None:
    rank, target = number(values, "rank"), number(values, "target_rank")
    if target >= rank:
        return "target_rank", f"{target} leaves nothing of rank {rank} to take away", "use a smaller one"
    return at_most_width(site, values)


@final
class AdaLora(AbstractBridged):
    """W + s B diag(E) A, whose ranks fall in training from `rank` to a mean of `target_rank`, the least useful first.

    One budget for all targets: after each `interval` steps the triplets of a row of A, an entry of E and a column of B
    that matter least (by the smoothed product of value and gradient) have their entry of E set to zero.
    """

    name = "adalora"
    peft_type = "ADALORA"
    coupled = True
    source = "Zhang et al. 2023 (arXiv 2303.10512), by Hugging Face PEFT"
    fields = (
        size("rank", "of every target at the start"),
        TARGETS,
        integer("target_rank", 1, text="mean rank at the end, below `rank`"),
        integer("alpha", 16, text="scale is alpha / rank"),
        dropout(),
        real("warmup_share", 0.1, high=0.9, text="share of the steps before ranks begin to fall"),
        real("final_share", 0.3, high=0.9, text="share of the steps at the end with fixed ranks"),
        integer("interval", 10, text="steps between two cuts"),
        real("smoothing", 0.85, low=1e-3, high=0.999, text="of the importances (beta1) and their spread (beta2)"),
        real("orthogonality", 0.5, high=100.0, text="weight of the loss that keeps A and B orthonormal"),
    )
    columns = peft_names(
        rank="init_r",
        target_rank="target_r",
        alpha="lora_alpha",
        dropout="lora_dropout",
        interval="deltaT",
        smoothing="beta1",
        orthogonality="orth_reg_weight",
    )
    constants = MappingProxyType({"total_step": 2**31})
    rule = staticmethod(_fewer)

    @staticmethod
    def options(values: Values) -> Mapping[str, object]:
        return {"beta2": values["smoothing"]}


@final
class PeftDeft(AbstractBridged):
    """Part of the weight's outputs taken out and trained anew: a projector P [d_out, rank], and R unless `para`."""

    name = "peft_deft"
    peft_type = "DEFT"
    source = "Hugging Face PEFT (decompositional efficient fine-tuning); not the activation-density loss of that name"
    fields = (
        RANK,
        TARGETS,
        flag("para", text="remove only (PaRa): no R"),
        choice("decomposition", "relu", "qr", text="how P becomes a projector"),
        real("scaling", 1.0, low=1e-6, text="factor of what comes in the place of what is taken out"),
        real("start", 1.0, low=1e-6, text="R starts from N(0, 0.02) times this"),
        dropout(),
    )
    columns = peft_names(
        rank="r", para="para", decomposition="decomposition_method", start="init_scale", dropout="deft_dropout"
    )
    rule = staticmethod(at_most_width)

    @staticmethod
    def options(values: Values) -> Mapping[str, object]:
        scaling, rank = values["scaling"], number(values, "rank")
        assert isinstance(scaling, int | float)
        return {"alpha": None if scaling == 1 else scaling * rank}

    @staticmethod
    def read_site(  # type: ignore[override]  # stands for the class variable of that name
        config: Mapping[str, object], site: Site
    ) -> Mapping[str, float]:
        alpha = config.get("alpha")
        return {"scaling": 1.0 if alpha is None else share(config, "alpha", 1.0) / whole(config, "r", 8)}


@final
class Delora(AbstractBridged):
    """A low-rank update with normalised factors and a trained bound on its length."""

    name = "delora"
    peft_type = "DELORA"
    source = "Bini et al. 2025 (arXiv 2503.18225), by Hugging Face PEFT"
    fields = (RANK, TARGETS, integer("bound", 15, text="first value of the bound (lambda)"), dropout())
    columns = peft_names(rank="r", bound="delora_lambda", dropout="module_dropout")
    rule = staticmethod(at_most_width)


@final
class Gralora(AbstractBridged):
    """LoRA in a k by k grid of blocks, with an optional plain LoRA of `hybrid_rank` beside it."""

    name = "gralora"
    peft_type = "GRALORA"
    coupled = True
    source = "Jung et al. 2025 (arXiv 2505.20355), by Hugging Face PEFT"
    fields = (
        RANK,
        TARGETS,
        integer("alpha", 64, text="scale is alpha / (rank + hybrid_rank)"),
        integer("blocks", 2, text="k; divides rank and both widths"),
        integer("hybrid_rank", 0, low=0, text="rank of the plain part"),
        dropout(),
    )
    columns = peft_names(rank="r", alpha="alpha", blocks="gralora_k", hybrid_rank="hybrid_r", dropout="gralora_dropout")

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        blocks, rank = number(values, "blocks"), number(values, "rank")
        if rank % blocks:
            return "blocks", f"{blocks} does not divide the rank {rank}", f"use a rank that {blocks} divides"
        return divides("blocks", d_in=True, d_out=True)(site, values)


@final
class Hira(AbstractBridged):
    """W * (B A), the Hadamard product of the weight with a low-rank matrix, added to it."""

    name = "hira"
    peft_type = "HIRA"
    source = "Huang et al. 2025 (openreview TwJrTz9cRS), by Hugging Face PEFT"
    fields = (RANK, TARGETS, dropout())
    columns = peft_names(rank="r", dropout="hira_dropout")
    rule = staticmethod(at_most_width)


@final
class Loha(AbstractBridged):
    """(B1 A1) * (B2 A2), the Hadamard product of two low-rank matrices, added to the weight."""

    name = "loha"
    peft_type = "LOHA"
    source = "Hyeon-Woo et al. 2021 (arXiv 2108.06098), by Hugging Face PEFT"
    fields = (
        RANK,
        TARGETS,
        real("alpha", 8.0, low=1e-6, text="scale is alpha / rank"),
        dropout("of the update's rows", high=0.9),
        MODULE_DROPOUT,
    )
    columns = peft_names(rank="r", alpha="alpha", dropout="rank_dropout", module_dropout="module_dropout")
    rule = staticmethod(at_most_width)


@final
class Lokr(AbstractBridged):
    """The Kronecker product of two matrices, the larger (or both) of low rank, added to the weight."""

    name = "lokr"
    peft_type = "LOKR"
    source = "Yeh et al. 2023 (arXiv 2309.14859), by Hugging Face PEFT"
    fields = (
        RANK,
        TARGETS,
        real("alpha", 8.0, low=1e-6, text="scale is alpha / rank"),
        integer("factor", -1, low=-1, text="size of the smaller matrix; -1 for the squarest split"),
        flag("decompose_both", text="the smaller matrix of low rank too"),
        dropout("of the update's rows"),
        MODULE_DROPOUT,
    )
    columns = peft_names(
        rank="r",
        alpha="alpha",
        factor="decompose_factor",
        decompose_both="decompose_both",
        dropout="rank_dropout",
        module_dropout="module_dropout",
    )

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        if number(values, "factor") == 0:
            return "factor", "0 splits nothing", "use -1, or a number from 1"
        return at_most_width(site, values)


@final
class Miss(AbstractBridged):
    """One trained block shared by all slices of the input: y += D sum of the slices; `bat` is Bone."""

    name = "miss"
    peft_type = "MISS"
    coupled = True
    source = "Kang and Yin 2024 (arXiv 2409.15371), by Hugging Face PEFT"
    learning_rates = RateRange(low=1e-5, high=2e-4, source="Bone 2e-5 (7B models, rank 64)")
    fields = (
        RANK,
        TARGETS,
        choice("mode", "balance", "bat", "mini", text="bat multiplies by the weight; mini shares over outputs too"),
        integer("mini_rank", 1, text="outputs of the shared block in mode mini"),
        dropout(),
    )
    columns = peft_names(rank="r", mini_rank="mini_r", dropout="miss_dropout")

    @staticmethod
    def options(values: Values) -> Mapping[str, object]:
        return {"init_weights": True if values["mode"] == "balance" else values["mode"]}

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        if values["mode"] == "bat":
            return divides("rank", d_in=True, d_out=True)(site, values)
        if values["mode"] == "mini" and (broken := divides("mini_rank", d_out=True)(site, values)):
            return broken
        return at_most_width(site, values)


@final
class Peanut(AbstractBridged):
    """A small network that makes the update from the weight itself: dW = s f(W A) B."""

    name = "peanut"
    peft_type = "PEANUT"
    source = "Hugging Face PEFT, PEANuT (arXiv 2410.01870)"
    fields = (
        RANK,
        TARGETS,
        integer("depth", 0, low=0, high=64, text="hidden layers on each side"),
        choice("activation", "relu", "gelu", "silu", "tanh", text="between the layers"),
        real("scaling", 1.0, low=1e-6, text="factor of the update"),
    )
    columns = peft_names(rank="r", depth="depth", activation="act_fn", scaling="scaling")
    rule = staticmethod(at_most_width)


@final
class Pvera(AbstractBridged):
    """VeRA whose inner vector is drawn from a trained Gaussian in training."""

    name = "pvera"
    peft_type = "PVERA"
    source = "Hugging Face PEFT, PVeRA (arXiv 2512.07703)"
    fields = (RANK, TARGETS, real("start", 0.1, low=-1e3, high=1e3, text="first value of the vector d"), dropout())
    columns = peft_names(rank="r", start="d_initial", dropout="pvera_dropout")
    constants = MappingProxyType({"save_projection": False})


@final
class RandLora(AbstractBridged):
    """A full-rank update: a sum of shared random low-rank matrices with trained diagonals between them."""

    name = "randlora"
    peft_type = "RANDLORA"
    source = "Albert et al. 2025 (arXiv 2502.00987), by Hugging Face PEFT"
    fields = (
        size("rank", "rank of each random basis: larger is cheaper"),
        TARGETS,
        integer("alpha", 640, high=1_000_000, text="scale is alpha / rank"),
        choice("bases", "dense", "sparse", "very_sparse", text="uniform numbers, or -1, 0 and 1 with most of them 0"),
        dropout(),
    )
    columns = peft_names(rank="r", alpha="randlora_alpha", dropout="randlora_dropout")
    constants = MappingProxyType({"save_projection": False})
    rule = staticmethod(at_most_width)

    @staticmethod
    def options(values: Values) -> Mapping[str, object]:
        return {"sparse": values["bases"] == "sparse", "very_sparse": values["bases"] == "very_sparse"}


@final
class TinyLora(AbstractBridged):
    """U R V: a rank by rank core, made from very few trained numbers by fixed random matrices."""

    name = "tinylora"
    peft_type = "TINYLORA"
    source = "Hugging Face PEFT, TinyLoRA (arXiv 2602.04118)"
    fields = (
        size("numbers", "trained numbers at each target"),
        TARGETS,
        integer("rank", 2, text="of the frame"),
        real("start", 0.0, high=1e3, text="numbers start between this and its negative; 0: no change"),
        dropout(),
    )
    columns = peft_names(numbers="u", rank="r", dropout="tinylora_dropout")
    rule = staticmethod(at_most_width)

    @staticmethod
    def options(values: Values) -> Mapping[str, object]:
        return {"init_weights": "uniform", "init_v_bound": values["start"]} if values["start"] else {}

    @staticmethod
    def read_site(  # type: ignore[override]  # stands for the class variable of that name
        config: Mapping[str, object], site: Site
    ) -> Mapping[str, float]:
        return {"start": share(config, "init_v_bound", 0.02) if config.get("init_weights") == "uniform" else 0.0}


@final
class VbLora(AbstractBridged):
    """LoRA whose factors are mixtures of the vectors of one bank, shared by all targets of equal settings."""

    name = "vblora"
    peft_type = "VBLORA"
    coupled = True
    source = "Li et al. 2024 (arXiv 2405.15179), by Hugging Face PEFT"
    fields = (
        RANK,
        TARGETS,
        integer("vectors", 256, low=2, text="in the bank"),
        integer("vector_length", 16, text="divides both widths"),
        integer("top_k", 2, text="vectors in a mixture"),
        real("start", 0.02, low=1e-6, high=1e3, text="vectors start between this and its negative"),
        real("spread", 0.1, high=1e3, text="deviation of the mixtures' first logits"),
        dropout(),
    )
    columns = peft_names(
        rank="r",
        vectors="num_vectors",
        vector_length="vector_length",
        top_k="topk",
        start="init_vector_bank_bound",
        spread="init_logits_std",
        dropout="vblora_dropout",
    )

    @staticmethod
    def shared(  # type: ignore[override]  # stands for the class variable of that name
        config: Mapping[str, object], sites: tuple[Site, ...]
    ) -> int:
        return whole(config, "num_vectors", 256) * whole(config, "vector_length", 256)

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        if number(values, "top_k") > number(values, "vectors"):
            return "top_k", f"{values['top_k']} is above the {values['vectors']} vectors", "use a smaller one"
        return divides("vector_length", d_in=True, d_out=True)(site, values) or at_most_width(site, values)


@final
class Vera(AbstractBridged):
    """diag(b) B diag(d) A: B and A frozen, random and shared, the two vectors trained at each target."""

    name = "vera"
    peft_type = "VERA"
    source = "Kopiczko et al. 2023 (arXiv 2310.11454), by Hugging Face PEFT"
    fields = (RANK, TARGETS, real("start", 0.1, low=-1e3, high=1e3, text="first value of the vector d"), dropout())
    columns = peft_names(rank="r", start="d_initial", dropout="vera_dropout")
    constants = MappingProxyType({"save_projection": False})
