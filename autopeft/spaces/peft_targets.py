"""Which modules of a base model an `adapter_config.json` names, by the rules of peft's tuners, without the model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from autopeft.errors import ConfigurationError
from autopeft.spaces.model_shape import ModelShape, Part, Role, Site
from autopeft.spaces.peft_counts import Config

PREFIXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "albert": "albert",
        "bert": "bert",
        "bloom": "transformer",
        "camembert": "roberta",
        "codegen": "transformer",
        "deberta": "deberta",
        "deberta-v2": "deberta",
        "distilbert": "distilbert",
        "electra": "electra",
        "falcon": "transformer",
        "gpt2": "transformer",
        "gpt_bigcode": "transformer",
        "gpt_neo": "transformer",
        "gpt_neox": "gpt_neox",
        "gptj": "transformer",
        "mpnet": "mpnet",
        "mpt": "transformer",
        "mt5": "",
        "roberta": "roberta",
        "t5": "",
        "vit": "vit",
        "xlm-roberta": "roberta",
    }
)
"""Family to the attribute under which a model with a head holds its base: `model` for all others, none for T5."""

HEAD: Final = "lm_head"
_HEAD_BIAS: Final = ("codegen", "gptj", "phi")
"""Families whose language-model head has a bias."""
_CLASSIFIER_POOLER: Final[Mapping[str, str]] = MappingProxyType(
    {"deberta": "pooler.dense", "deberta-v2": "pooler.dense"}
)
"""Linear maps that a family's classification model has between its base and its classifier, whose width only the
model's own configuration says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module as peft sees it."""

    name: str
    """Dotted path in the model with its head, e.g. `model.layers.0.self_attn.q_proj`."""
    bare: str
    """The same inside the bare base model."""
    sizes: tuple[tuple[str, tuple[int, ...]], ...]
    linear: Site | None
    """Its dimensions where it is a linear map, called by its full `name`."""

    @property
    def names(self) -> tuple[str, str]:
        return self.name, self.bare


def modules(shape: ModelShape, *, head: bool) -> tuple[Module, ...]:
    """Every module of the base model that has parameters, and the language-model head where `head` asks for it."""
    rows = [_from_site(shape, layer, site) for layer, row in enumerate(shape.layers) for site in row]
    rows += [_from_part(shape, part) for part in shape.parts]
    if head and (shape.causal or shape.decoder_layers):
        d_in, d_out, bias = shape.hidden_size, shape.vocabulary_size, shape.family in _HEAD_BIAS
        site = Site(name=HEAD, d_in=d_in, d_out=d_out, bias=bias, role=Role.OTHER)
        sizes = (("weight", (d_out, d_in)), *([("bias", (d_out,))] if bias else []))
        rows.append(Module(name=HEAD, bare=HEAD, sizes=sizes, linear=site))
    return tuple(rows)


def targeted(config: Config, shape: ModelShape) -> tuple[Module, ...]:
    """The modules that `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern` select.

    Raises:
        ConfigurationError: The configuration names no target, or none that this model has.
    """
    targets = config.get("target_modules")
    if not isinstance(targets, str | Sequence) or not targets:
        raise ConfigurationError(
            f"target_modules: {targets!r} names no module",
            hint='write the names that peft recorded, e.g. ["q_proj", "v_proj"], or "all-linear"',
        )
    everything = modules(shape, head=True)
    if isinstance(targets, str) and targets.lower() == "all-linear":
        found = [module for module in everything if module.linear and module.name != HEAD]
    else:
        found = [module for module in everything if any(_matches(config, name) for name in module.names)]
    _check_pooler(config, shape, targets)
    found = [module for module in found if not _excluded(config, module)]
    if not found:
        raise _nothing_targeted(config, shape, targets)
    return tuple(found)


def head_biases(config: Config, shape: ModelShape) -> int:
    """Biases of the language-model head, where the model has one and its head has some."""
    if config.get("task_type") not in (None, "CAUSAL_LM") or not shape.causal or shape.family not in _HEAD_BIAS:
        return 0
    return shape.vocabulary_size


def _check_pooler(config: Config, shape: ModelShape, targets: str | Sequence[object]) -> None:
    """Refuse targets that name a map which comes with the classification model and is not described.

    Raises:
        ConfigurationError: They do.
    """
    name = _CLASSIFIER_POOLER.get(shape.family)
    if name is None or config.get("task_type") != "SEQ_CLS":
        return
    module = Module(name=name, bare=name, sizes=(), linear=None)
    every = isinstance(targets, str) and targets.lower() == "all-linear"
    if (every or _matches(config, name)) and not _excluded(config, module):
        raise ConfigurationError(
            f"target_modules: {targets!r} names {name} too, which this {shape.family} model has for classification"
            " alone and whose width is not known here",
            hint=f'add "exclude_modules": ["{name}"], or name maps of the layers only',
        )


def _nothing_targeted(config: Config, shape: ModelShape, targets: str | Sequence[object]) -> ConfigurationError:
    layers = config.get("layers_to_transform")
    if layers is not None and layers != []:
        return ConfigurationError(
            f"layers_to_transform: {layers!r} leaves no module {_words(targets)} of this {shape.family} model, whose"
            f" layers are 0 to {shape.n_layers - 1}",
            hint="take the configuration of this base model",
        )
    return ConfigurationError(
        f"target_modules: this {shape.family} model has no module {_words(targets)}; its layers have"
        f" {', '.join(site.name for site in shape.layers[0])}",
        hint="take the configuration of this base model",
    )


def saved_modules(config: Config, shape: ModelShape) -> tuple[Module, ...]:
    """The modules of the base model that `modules_to_save` trains as copies; a task's own head is not among them."""
    endings = config.get("modules_to_save") or ()
    assert isinstance(endings, Sequence)
    return tuple(
        module
        for module in modules(shape, head=True)
        if any(path.endswith(str(ending)) for path in _ancestors(module.name) for ending in endings)
    )


def ending_in(word: str, shape: ModelShape) -> tuple[Module, ...]:
    """The modules whose name ends in `word`.

    Raises:
        ConfigurationError: There is none.
    """
    found = tuple(module for module in modules(shape, head=True) if module.name.endswith(word))
    if not found:
        raise ConfigurationError(
            f"this {shape.family} model has no module {word!r}", hint="take the configuration of this base model"
        )
    return found


def input_embedding(shape: ModelShape) -> Part:
    """The word embedding: the first embedding with a row for each word.

    Raises:
        ConfigurationError: The model has none.
    """
    for part in shape.parts:
        if "Embedding" in part.kind and part.sizes[0][1][0] == shape.vocabulary_size:
            return part
    raise ConfigurationError(
        f"this {shape.family} model has no embedding of its {shape.vocabulary_size} words",
        hint="count the built model",
    )


def pattern_value(patterns: object, names: Sequence[str], default: object) -> object:
    """The value whose key names the module (`rank_pattern` and the like), `default` where none does."""
    if isinstance(patterns, Mapping):
        for key, value in patterns.items():
            if any(re.match(rf"(.*\.)?({key})$", name) for name in names):
                return value
    return default


def _from_site(shape: ModelShape, layer: int, site: Site) -> Module:
    bare = f"{shape.path_of(layer)}.{site.name}"
    name = _full(shape, bare)
    weight = ("weight", (site.d_out, site.d_in))
    sizes = (weight, ("bias", (site.d_out,))) if site.bias else (weight,)
    return Module(name=name, bare=bare, sizes=sizes, linear=replace(site, name=name))


def _from_part(shape: ModelShape, part: Part) -> Module:
    name, linear = _full(shape, part.name), None
    if part.kind == "Linear":
        d_out, d_in = dict(part.sizes)["weight"]
        linear = Site(name=name, d_in=d_in, d_out=d_out, bias=len(part.sizes) > 1, role=Role.OTHER)
    return Module(name=name, bare=part.name, sizes=part.sizes, linear=linear)


def _full(shape: ModelShape, bare: str) -> str:
    prefix = PREFIXES.get(shape.family, "model")
    return f"{prefix}.{bare}" if prefix else bare


def _matches(config: Config, name: str) -> bool:
    targets = config["target_modules"]
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    assert isinstance(targets, Sequence)
    if name in targets:
        return True
    return any(name.endswith(f".{target}") for target in targets) and _in_layers(config, name)


def _in_layers(config: Config, name: str) -> bool:
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    patterns = config.get("layers_pattern") or ()
    texts = [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]  # type: ignore[union-attr]  # a list in JSON
    expressions = [rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\." for text in texts] or [r".*?\.[^.]*\.(?P<idx>\d+)\."]
    found = next((match for text in expressions if (match := re.match(text, name))), None)
    layers = [wanted] if isinstance(wanted, int) else wanted
    return found is not None and int(found["idx"]) in layers  # type: ignore[operator]  # a list in JSON


def _excluded(config: Config, module: Module) -> bool:
    saved = config.get("modules_to_save") or ()
    assert isinstance(saved, Sequence)
    if any(re.match(rf"(^|.*\.){word}($|\..*)", module.name) for word in saved):
        return True
    excluded = config.get("exclude_modules")
    if isinstance(excluded, str):
        return any(re.fullmatch(excluded, name) for name in module.names)
    assert isinstance(excluded, Sequence | None)
    return any(name == word or name.endswith(f".{word}") for name in module.names for word in excluded or ())


def _ancestors(path: str) -> Iterator[str]:
    """`path` and every path above it."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _words(targets: str | Sequence[object]) -> str:
    return repr(targets) if isinstance(targets, str) else " or ".join(repr(word) for word in targets)
