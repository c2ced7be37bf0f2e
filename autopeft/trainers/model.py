"""Base models: their shape from the configuration alone, and the loaded, frozen model with a task head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from autopeft.errors import ModelError
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.checkpoint import (
    attempt,
    check_folder,
    code_options,
    dtype_of,
    load_image_reader,
    place_of,
    quiet,
    read_config,
    shorten,
    source_of,
)
from autopeft.trainers.image_reader import ImageReader
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.kinds import AUTO_CLASSES, CLASSIFICATION, IMAGES, KINDS, LANGUAGE, SEQUENCES, check_kind
from autopeft.trainers.sites import Conv1D, measure, reads_images

_TOKENIZER_FILES: Final = (
    "the folder needs tokenizer.json (or the vocabulary files of its tokenizer) beside config.json"
)
_LANGUAGE_FIRST: Final = ("mbart", "plbart")
"""Families whose decoder begins with the last token of the target, its language."""
_FILLERS: Final = 2
"""Tokens that transformers makes up besides the special ones when a folder has no vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A base model with a task head: everything frozen but the head, everything in eval mode.

    The frozen part stays in eval mode during training too: only the adapters' and the head's dropout act. So its
    output below the lowest adapted layer is the same for every trial, and a trial's noise is its own.
    """

    spec: ModelSpec
    kind: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    """None for a model that reads images."""
    reader: ImageReader | None
    """The image processor of a model that reads images, else None."""
    shape: ModelShape
    head_names: tuple[str, ...]
    """Dotted names of the modules that are new and trained, in module order; empty for language models. They are the
    children of the model beside its base, and parts of the base that the checkpoint does not have (a pooler)."""


def read_shape(spec: ModelSpec, *, depth: int | None = None) -> ModelShape:
    """The shape of the bare base model from its configuration; reads no weights and allocates none.

    Args:
        spec: Which model.
        depth: With its first so many layers only.

    Raises:
        ModelError: No such folder or hub model, no usable config.json, or an architecture that is not supported.
    """
    base = build_empty(spec, depth=depth)
    try:
        return measure(base, base.config, image_size=_image_size(spec) if reads_images(base) else None)
    except ModelError as error:
        raise error.at(place_of(spec)) from None


def build_empty(
    spec: ModelSpec, kind: str | None = None, *, n_labels: int | None = None, depth: int | None = None
) -> PreTrainedModel:
    """The model on the meta device, without weights: bare, or as `load_model` has it for the task `kind`.

    With `depth` it has its first so many layers only.

    Raises:
        ModelError: As for `read_shape`.
    """
    config = read_config(spec)
    if n_labels is not None:
        config.num_labels = n_labels
    if depth is not None:
        shorten(config, depth)
    make = _bare if kind is None else AUTO_CLASSES[kind].from_config
    with quiet(), torch.device("meta"):
        return attempt(
            lambda: make(config, dtype=dtype_of(spec, config), **code_options(spec)),
            place=place_of(spec),
            hint="use a transformer encoder or decoder that transformers' AutoModel can build; set attention to sdpa"
            " or eager",
        )


def _bare(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The base model without a task head; one that reads images as it is under its classification head.

    Vision transformers have a pooler of their own as bare models, and another one or none below that head.
    """
    if config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        whole = AutoModelForImageClassification.from_config(config, **options)
        if reads_images(whole) and whole.base_model is not whole:
            return whole.base_model
    return AutoModel.from_config(config, **options)


def _image_size(spec: ModelSpec) -> tuple[int, int] | None:
    """Height and width that the model's image processor gives; None where it has none."""
    try:
        return load_image_reader(spec).size
    except ModelError:
        return None


def is_transposed(spec: ModelSpec) -> bool:
    """Whether the base keeps weights as [d_in, d_out] (GPT-2's `Conv1D`); reads no weights.

    Raises:
        ModelError: As for `read_shape`.
    """
    return any(isinstance(module, Conv1D) for module in build_empty(spec).modules())


def load_model(spec: ModelSpec, *, kind: str, n_labels: int | None) -> LoadedModel:
    """Load tokenizer or image processor and weights, put the task's head on, freeze all but the head.

    Args:
        spec: Which model; weights come in `spec.dtype`, else in the dtype that its configuration names. A head
            is always fp32 and casts its input.
        kind: A key of `autopeft.trainers.kinds.AUTO_CLASSES`.
        n_labels: Outputs of the new head, 1 for regression and multiple choice; None for language models.

    Raises:
        ModelError: Besides `read_shape`'s reasons: no tokenizer or image processor, no weights, weights that do not
            fit the configuration, an unknown kind, or one that the model is not made for.
    """
    if kind not in KINDS:
        raise ModelError(f"unknown task kind {kind!r}", hint=f"use one of {', '.join(KINDS)}")
    shape = read_shape(spec)
    check_kind(kind, shape, place=place_of(spec), custom_code=spec.trust_remote_code)
    tokenizer = None if kind == IMAGES else load_tokenizer(spec)
    reader = load_image_reader(spec) if kind == IMAGES else None
    model, missing = _load_weights(spec, kind=kind, n_labels=n_labels)
    if tokenizer is not None:
        for config in (model.config, model.config.get_text_config()):
            config.pad_token_id = tokenizer.pad_token_id
    if kind == SEQUENCES:
        settle_decoder_start(model, place=place_of(spec))
    model.requires_grad_(False).eval()
    head_names = () if kind in LANGUAGE else head_modules(model, missing, place=place_of(spec))
    for name in head_names:
        make_trainable(model.get_submodule(name))
    return LoadedModel(
        spec=spec, kind=kind, model=model, tokenizer=tokenizer, reader=reader, shape=shape, head_names=head_names
    )


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer; one without a padding token (most decoders) pads with its end-of-text token.

    Raises:
        ModelError: There is none, or an empty one (which transformers makes up for a folder without vocabulary), or
            it has neither token.
    """
    check_folder(spec)
    with quiet():
        tokenizer: PreTrainedTokenizerBase = attempt(
            lambda: AutoTokenizer.from_pretrained(
                source_of(spec), revision=spec.revision, trust_remote_code=spec.trust_remote_code
            ),
            place=f"{place_of(spec)}: tokenizer",
            hint=_TOKENIZER_FILES,
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + _FILLERS:
        raise ModelError(f"{place_of(spec)}: tokenizer: it has no words", hint=_TOKENIZER_FILES)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{place_of(spec)}: the tokenizer has no padding token and no end-of-text token",
            hint="set pad_token in its tokenizer_config.json",
        )
    return tokenizer


def decoder_inputs(model: PreTrainedModel, labels_BS: torch.Tensor) -> torch.Tensor:
    """What the decoder reads while it learns to write `labels_BS` (-100 is padding): the same, one place later.

    By the model's own rule where it has one: mBART begins with the language that ends the target.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own(labels=labels_BS)
    read_BS = labels_BS.new_full(labels_BS.shape, model.config.decoder_start_token_id)
    read_BS[:, 1:] = labels_BS[:, :-1]
    return read_BS.masked_fill_(read_BS == -100, model.config.pad_token_id)


def settle_decoder_start(model: PreTrainedModel, *, place: str) -> None:
    """Put the token that a decoder begins with where its rule looks for it.

    Raises:
        ModelError: Nothing names it.
    """
    known = (getattr(config, "decoder_start_token_id", None) for config in (model.config, model.generation_config))
    start = next((token for token in known if token is not None), None)
    if start is None and model.config.model_type not in _LANGUAGE_FIRST:
        raise ModelError(
            f"{place}: config.json names no decoder_start_token_id, the token that its decoder begins with",
            hint="add it; for T5 it is pad_token_id, for BART eos_token_id",
        )
    model.config.decoder_start_token_id = start


def head_parameters(loaded: "HasHead") -> dict[str, nn.Parameter]:
    """The head's parameters by their names in the model, in a stable order."""
    return {
        f"{name}.{inner}": parameter
        for name in loaded.head_names
        for inner, parameter in loaded.model.get_submodule(name).named_parameters()
    }


def head_state(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Copies of the head's tensors, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in head_parameters(loaded).items()}


def load_head_state(loaded: LoadedModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copy `state` (as from `head_state`) into the head.

    Raises:
        ModelError: Names or sizes differ from the head's.
    """
    fill_head(head_parameters(loaded), state)


@torch.no_grad()
def fill_head(own: Mapping[str, nn.Parameter], state: Mapping[str, torch.Tensor]) -> None:
    """Copy `state` into a head's parameters, the model's own or a copy's.

    Raises:
        ModelError: Names or sizes differ.
    """
    sizes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in own.items()}
    if sizes != expected:
        differing = sorted({name for name, _ in sizes.items() ^ expected.items()})
        raise ModelError(
            f"the saved head does not fit this model: {', '.join(differing[:4])}",
            hint="load it on the base model, and with the number of labels, that it was trained with",
        )
    for name, parameter in own.items():
        parameter.copy_(state[name])


@torch.no_grad()
def reset_head(loaded: LoadedModel, seed: int) -> None:
    """Draw the head anew: linear weights N(0, initializer_range), zero biases, norms at identity.

    Equal seeds give equal heads, whatever the device; no global random state is touched.
    """
    generator = torch.Generator().manual_seed(seed)
    std = float(getattr(loaded.model.config, "initializer_range", None) or 0.02)
    for name, parameter in head_parameters(loaded).items():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.copy_(torch.empty(parameter.shape).normal_(std=std, generator=generator))


def name_labels(config: PretrainedConfig, kind: str, labels: object) -> None:
    """Put the names of the classes into a model's configuration; mark a head of one output as a regression."""
    if isinstance(labels, Sequence) and labels and len(labels) == config.num_labels:
        config.id2label = {index: str(label) for index, label in enumerate(labels)}
        config.label2id = {str(label): index for index, label in enumerate(labels)}
    if kind == CLASSIFICATION and config.num_labels == 1:
        config.problem_type = "regression"


class HasHead(Protocol):
    """A loaded model, or one that is only described."""

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def head_names(self) -> tuple[str, ...]: ...


def set_training(loaded: HasHead, *, training: bool) -> None:
    """Turn the head's dropout on or off; the frozen base stays in eval mode either way."""
    loaded.model.eval()
    for name, child in loaded.model.named_children():
        if name != loaded.model.base_model_prefix and loaded.head_names:
            child.train(training)
    for name in loaded.head_names:
        loaded.model.get_submodule(name).train(training)


def _load_weights(spec: ModelSpec, *, kind: str, n_labels: int | None) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of the tensors that its checkpoint does not have (or has in another size)."""
    config = read_config(spec)
    auto = AUTO_CLASSES[kind]
    if n_labels is not None:
        config.num_labels = n_labels
    with quiet():
        model, info = attempt(  # type: ignore[misc]  # a pair, for output_loading_info
            lambda: auto.from_pretrained(
                source_of(spec),
                config=config,
                revision=spec.revision,
                dtype=dtype_of(spec, config),
                trust_remote_code=spec.trust_remote_code,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            ),
            place=f"{place_of(spec)}: weights",
            hint="the folder needs model.safetensors (or its shards) of the architecture in config.json",
        )
    prefix = f"{model.base_model_prefix}."
    mismatched = {row[0] for row in info["mismatched_keys"]}
    wrong = sorted(key for key in mismatched if key.startswith(prefix) or kind in LANGUAGE)
    if wrong:
        raise ModelError(
            f"{place_of(spec)}: weights: {wrong[0]} has another size than config.json says",
            hint="config.json and the weights file belong to different models; take both from one place",
        )
    missing = set(info["missing_keys"])
    if kind in LANGUAGE and missing:
        raise ModelError(
            f"{place_of(spec)}: weights: no {min(missing)} in the checkpoint",
            hint=f"{kind} needs a checkpoint saved with its language-model head",
        )
    return model, missing | mismatched


def head_modules(model: PreTrainedModel, missing: set[str], *, place: str) -> tuple[str, ...]:
    """Children beside the base that have parameters, and parts of the base that are new.

    Raises:
        ModelError: Tensors of the embeddings or the layers are missing: the weights are another model's.
    """
    prefix = model.base_model_prefix
    names = [name for name, child in model.named_children() if name != prefix and any(True for _ in child.parameters())]
    new = {key.removeprefix(f"{prefix}.").partition(".")[0] for key in missing if key.startswith(f"{prefix}.")}
    lost = sorted(part for part in new if _is_body(model.base_model.get_submodule(part)))
    if lost:
        raise ModelError(
            f"{place}: weights: the checkpoint has no tensors for part or all of {', '.join(lost)}",
            hint="config.json and the weights file belong to different models; take both from one place",
        )
    return (*(f"{prefix}.{part}" for part in sorted(new)), *names)


def _is_body(part: nn.Module) -> bool:
    """Whether a part of the base holds embeddings (of words or patches) or layers, which only a checkpoint can give."""
    return any(isinstance(module, (nn.Embedding, nn.ModuleList, nn.Conv2d)) for module in part.modules())


def make_trainable(head: nn.Module) -> None:
    """fp32 parameters with gradients; the input of the head is cast to fp32 on its way in."""
    head.float().requires_grad_(True)

    def to_float(_: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(arg.float() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args)

    head.register_forward_pre_hook(to_float)
