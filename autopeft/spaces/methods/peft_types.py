"""The other types of Hugging Face PEFT that act on linear maps, each as a method: a class is a row of a table."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, final

from autopeft.spaces.methods.bridged import (
    ENABLED,
    RANK,
    TARGETS,
    AbstractBridged,
    Field,
    Values,
    at_most_width,
    choice,
    divides,
    dropout,
    flag,
    integer,
    no_more_than_entries,
    number,
    peft_names,
    real,
    size,
)
from autopeft.spaces.methods.method import FieldKind
from autopeft.spaces.methods.peft_lily import Lily
from autopeft.spaces.methods.peft_low_rank import (
    AdaLora,
    Delora,
    Gralora,
    Hira,
    Loha,
    Lokr,
    Miss,
    Peanut,
    PeftDeft,
    Pvera,
    RandLora,
    TinyLora,
    VbLora,
    Vera,
)
from autopeft.spaces.methods.peft_subspace import Adamss, Osf, Poly, UniLora
from autopeft.spaces.model_shape import Site
from autopeft.spaces.peft_counts import share

WAVELETS: Final = ("db1", "db2", "db4", "db8", "sym4", "sym8", "coif1", "coif2")
"""Of those that peft knows, one or two of each length; db1 is Haar's."""


@final
class Beft(AbstractBridged):
    """y + b, a trained bias on each target's output, zero at the start."""

    name = "beft"
    peft_type = "BEFT"
    source = "Hugging Face PEFT, BEFT (arXiv 2509.15974)"
    fields = (ENABLED, TARGETS)
    columns = peft_names()


@final
class Boft(AbstractBridged):
    """W R s: the input turned by trained orthogonal blocks (one butterfly factor), the output scaled."""

    name = "boft"
    peft_type = "BOFT"
    source = "Liu et al. 2023 (arXiv 2311.06243), by Hugging Face PEFT"
    fields = (size("block_size", "width of the orthogonal blocks"), TARGETS, dropout("of whole blocks"))
    columns = peft_names(block_size="boft_block_size", dropout="boft_dropout")
    constants = MappingProxyType({"boft_n_butterfly_factor": 1})
    rule = staticmethod(divides("block_size", d_in=True))


@final
class C3a(AbstractBridged):
    """A grid of trained circulant blocks beside the weight, applied by FFT."""

    name = "c3a"
    peft_type = "C3A"
    source = "Chen et al. 2024 (arXiv 2407.19342), by Hugging Face PEFT"
    fields = (
        size("block_size", "width of the circulant blocks: larger is cheaper"),
        TARGETS,
        choice("init", "xavier_uniform", "kaiming_uniform", "gaussian", "zero", text="of the blocks; zero: no change"),
    )
    columns = peft_names(block_size="block_size")
    rule = staticmethod(divides("block_size", d_in=True, d_out=True))

    @staticmethod
    def options(values: Values) -> Mapping[str, object]:
        return {"init_weights": True if values["init"] == "zero" else values["init"]}


@final
class FourierFt(AbstractBridged):
    """The update as few trained entries of its discrete Fourier transform."""

    name = "fourierft"
    peft_type = "FOURIERFT"
    source = "Gao et al. 2024 (arXiv 2405.03003), by Hugging Face PEFT"
    fields = (
        size("frequencies", "trained entries of the spectrum at each target"),
        TARGETS,
        real("scaling", 150.0, low=1e-6, text="factor of the update"),
        choice("init", "normal", "zero", text="of the entries: N(0, 1), or no change"),
    )
    columns = peft_names(frequencies="n_frequency", scaling="scaling")
    rule = staticmethod(no_more_than_entries)

    @staticmethod
    def options(values: Values) -> Mapping[str, object]:
        return {"init_weights": values["init"] == "zero"}


@final
class Glora(AbstractBridged):
    """W + W A + B and b + b D + E + W C: every part a low-rank matrix, a vector, a number or absent."""

    name = "glora"
    peft_type = "GLORA"
    source = "Chavan et al. 2023 (arXiv 2306.07967), by Hugging Face PEFT"
    fields = (
        RANK,
        TARGETS,
        choice("weight_path", "lora", "vector", "constant", text="A and B"),
        choice("input_path", "lora", "vector", "none", text="C; only where the map has a bias"),
        choice("bias_path", "constant", "vector", "none", text="D and E; only where the map has a bias"),
    )
    columns = peft_names(rank="r", weight_path="config_A_B", input_path="config_C", bias_path="config_D_E")
    rule = staticmethod(at_most_width)


@final
class Hra(AbstractBridged):
    """The input turned by a product of `rank` trained Householder reflections."""

    name = "hra"
    peft_type = "HRA"
    source = "Yuan et al. 2024 (arXiv 2405.17484), by Hugging Face PEFT"
    fields = (
        size("reflections", "number of reflections, even for no change at the start"),
        TARGETS,
        flag("orthogonalise", text="Gram-Schmidt over the reflections, of which there is then an odd number"),
    )
    columns = peft_names(reflections="r", orthogonalise="apply_GS")
    coupled = True

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        reflections = number(values, "reflections")
        if reflections > site.d_in:
            return "reflections", f"{reflections} is above the width {site.d_in}", f"use up to {site.d_in}"
        if values["orthogonalise"] and reflections % 2 == 0:
            problem = f"{reflections} start as equal pairs, which orthogonalise divides by zero"
            return "reflections", problem, "use an odd number, or orthogonalise false"
        return None


@final
class Ia3(AbstractBridged):
    """A trained factor for each output of a target, or for each input where it is the last map of the MLP."""

    name = "ia3"
    peft_type = "IA3"
    source = "Liu et al. 2022 (arXiv 2205.05638), by Hugging Face PEFT"
    fields = (
        ENABLED,
        Field(name="targets", kind=FieldKind.TARGETS, default=("key-value-down",), help="linear maps of the layer"),
    )
    columns = peft_names()


@final
class Oft(AbstractBridged):
    """The input turned by trained orthogonal blocks (Cayley transform)."""

    name = "oft"
    peft_type = "OFT"
    source = "Qiu et al. 2023 (arXiv 2306.07280), by Hugging Face PEFT"
    fields = (
        size("block_size", "width of the orthogonal blocks, from 2"),
        TARGETS,
        flag("shared_block", text="one block for all slices of the input"),
        flag("constrained", text="stay near the identity (COFT)"),
        real("distance", 6e-5, low=1e-9, high=10.0, text="from the identity at most, where constrained"),
        flag("neumann", default=True, text="the transform by a series, faster than by solving"),
        integer("terms", 5, low=2, high=64, text="of the series"),
        dropout("of whole blocks"),
    )
    columns = peft_names(
        block_size="oft_block_size",
        shared_block="block_share",
        constrained="coft",
        distance="eps",
        neumann="use_cayley_neumann",
        terms="num_cayley_neumann_terms",
        dropout="module_dropout",
    )
    constants = MappingProxyType({"r": 0})

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        if number(values, "block_size") < 2:
            return "block_size", "1 turns nothing", "use 2 or more"
        return divides("block_size", d_in=True)(site, values)


@final
class Psoft(AbstractBridged):
    """A trained rotation (and two scales) between the weight's principal singular frames."""

    name = "psoft"
    peft_type = "PSOFT"
    source = "Principal subspace adaptation (openreview FSHrinMArK), by Hugging Face PEFT"
    fields = (
        RANK,
        TARGETS,
        choice("frames", "psoft_init", "pissa_init", text="singular values in B alone, or half of each in A and B"),
        choice("svd", "full", "lowrank", text="how the frames are found; lowrank is fast on wide maps"),
        flag("orthogonal", default=True, text="the core is a rotation; any matrix without"),
        flag("scale_in", default=True, text="a trained factor for each input of the core"),
        flag("scale_out", default=True, text="a trained factor for each output of the core"),
        flag("neumann", text="the rotation by a series, faster than by solving"),
        integer("terms", 5, low=2, high=64, text="of the series"),
        real("bound", 0.0, high=0.999, text="Frobenius norm at most of what the series turns by; 0 for none"),
        dropout(),
    )
    columns = peft_names(
        rank="r",
        frames="ab_svd_init",
        svd="psoft_svd",
        orthogonal="psoft_orth",
        scale_in="psoft_mag_a",
        scale_out="psoft_mag_b",
        neumann="use_cayley_neumann",
        terms="num_cayley_neumann_terms",
        dropout="psoft_dropout",
    )

    @staticmethod
    def options(values: Values) -> Mapping[str, object]:
        # alpha cancels: the frames are divided by what multiplies the update
        return {"psoft_alpha": values["rank"], "cayley_neumann_eps": values["bound"] or None}

    @staticmethod
    def read_site(  # type: ignore[override]  # stands for the class variable of that name
        config: Mapping[str, object], site: Site
    ) -> Mapping[str, float]:
        return {"bound": share(config, "cayley_neumann_eps", 0.0)}

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        if number(values, "rank") < 2:
            return "rank", "1 has no rotation", "use 2 or more"
        return at_most_width(site, values)


@final
class Road(AbstractBridged):
    """Pairs of outputs turned by trained angles and scaled."""

    name = "road"
    peft_type = "ROAD"
    source = "Liao and Monz 2024 (arXiv 2409.00119), by Hugging Face PEFT"
    fields = (
        ENABLED,
        TARGETS,
        integer("group_size", 16, low=2, text="outputs among which pairs are made, even"),
        choice("variant", "road_1", "road_2", "road_4", text="trained numbers for each pair: 2, 4 or 8"),
    )
    columns = peft_names(group_size="group_size", variant="variant")

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        if number(values, "group_size") % 2:
            return "group_size", f"{values['group_size']} is odd", "use an even number that divides the width"
        return divides("group_size", d_out=True)(site, values)


@final
class Shira(AbstractBridged):
    """rank * (d_in + d_out) entries of the weight, drawn at random, are trained."""

    name = "shira"
    peft_type = "SHIRA"
    source = "Bhardwaj et al. 2024 (arXiv 2406.13175), by Hugging Face PEFT"
    fields = (size("rank", "as many entries as LoRA of this rank has"), TARGETS)
    columns = peft_names(rank="r")
    constants = MappingProxyType({"random_seed": 0})

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        top = site.d_in * site.d_out // (site.d_in + site.d_out)
        if number(values, "rank") > top:
            return "rank", f"{values['rank']} has more entries than the weight", f"use ranks up to {top}"
        return None


@final
class Supertuning(AbstractBridged):
    """The share 1 - sparsity of the weight's entries with the largest values is trained."""

    name = "supertuning"
    peft_type = "SUPERTUNING"
    source = "Hugging Face PEFT, SuperTuning (arXiv 2607.09287)"
    fields = (
        ENABLED,
        TARGETS,
        real("sparsity", 0.99, high=0.999999, text="share of the entries that stays frozen"),
        flag("largest", default=True, text="the largest entries; the smallest without"),
    )
    columns = peft_names(sparsity="sparsity", largest="select_top")

    @staticmethod
    def rule(site: Site, values: Values) -> tuple[str, str, str] | None:
        sparsity = values["sparsity"]
        assert isinstance(sparsity, int | float)
        if int(site.d_in * site.d_out * (1 - sparsity)) < 1:
            return "sparsity", f"{sparsity} leaves no entry to train", "use a smaller one"
        return None


@final
class WaveFt(AbstractBridged):
    """The update as few trained entries of its wavelet transform."""

    name = "waveft"
    peft_type = "WAVEFT"
    source = "Bilican et al. 2025 (arXiv 2505.12532), by Hugging Face PEFT"
    fields = (
        size("frequencies", "trained entries at each target"),
        TARGETS,
        real("scaling", 25.0, low=1e-6, text="factor of the update"),
        choice("wavelet", *WAVELETS, text="family; longer filters take longer"),
        flag("inverse", default=True, text="the transform is taken back; entries of the weight itself without, faster"),
        choice("init", "zero", "normal", text="of the entries: no change, or small and random"),
    )
    columns = peft_names(frequencies="n_frequency", scaling="scaling", wavelet="wavelet_family", inverse="use_idwt")
    rule = staticmethod(no_more_than_entries)

    @staticmethod
    def options(values: Values) -> Mapping[str, object]:
        return {"init_weights": values["init"] == "zero"}


PEFT_TYPES: tuple[AbstractBridged, ...] = (
    AdaLora(),
    Adamss(),
    Beft(),
    Boft(),
    C3a(),
    Delora(),
    FourierFt(),
    Glora(),
    Gralora(),
    Hira(),
    Hra(),
    Ia3(),
    Lily(),
    Loha(),
    Lokr(),
    Miss(),
    Oft(),
    Osf(),
    Peanut(),
    PeftDeft(),
    Poly(),
    Psoft(),
    Pvera(),
    RandLora(),
    Road(),
    Shira(),
    Supertuning(),
    TinyLora(),
    UniLora(),
    VbLora(),
    Vera(),
    WaveFt(),
)
"""A row makes a type a method; its count is in `autopeft.spaces.peft_counts`, its layer is peft's."""
