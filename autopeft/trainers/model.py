"""Base models: their shape from the configuration alone, and the loaded, frozen model with a task head."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from autopeft.errors import ModelError
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.kinds import AUTO_CLASSES, KINDS, LANGUAGE, check_kind
from autopeft.trainers.sites import measure

T = TypeVar("T")

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_TOKENIZER_FILES: Final = (
    "the folder needs tokenizer.json (or the vocabulary files of its tokenizer) beside config.json"
)
_FILLERS: Final = 2
"""Tokens that transformers makes up besides the special ones when a folder has no vocabulary."""
_LOAD_ERRORS: Final = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A base model with a task head: everything frozen but the head, everything in eval mode.

    The frozen part stays in eval mode during training too: only the adapters' and the head's dropout act. So its
    output below the lowest adapted layer is the same for every trial, and a trial's noise is its own.
    """

    spec: ModelSpec
    kind: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: ModelShape
    head_names: tuple[str, ...]
    """Dotted names of the modules that are new and trained, in module order; empty for language models. They are the
    children of the model beside its base, and parts of the base that the checkpoint does not have (a pooler)."""


def read_shape(spec: ModelSpec) -> ModelShape:
    """The shape of the bare base model from its configuration; reads no weights and allocates none.

    Raises:
        ModelError: No such folder or hub model, no usable config.json, or an architecture that is not supported.
    """
    config = read_config(spec)
    with _quiet(), torch.device("meta"):
        base = _attempt(
            lambda: AutoModel.from_config(config, dtype=_dtype(spec, config), **_code_options(spec)),
            place=_place(spec),
            hint="use a transformer encoder or decoder that transformers' AutoModel can build; set attention to sdpa"
            " or eager",
        )
    try:
        return measure(base, config)
    except ModelError as error:
        raise error.at(_place(spec)) from None


def read_config(spec: ModelSpec) -> PretrainedConfig:
    """The Hugging Face configuration of `spec`, with its attention implementation applied.

    Raises:
        ModelError: As for `read_shape`.
    """
    _check_folder(spec)
    options = {} if spec.attention is None else {"attn_implementation": spec.attention}
    with _quiet():
        config: PretrainedConfig = _attempt(
            lambda: AutoConfig.from_pretrained(
                _source(spec), revision=spec.revision, trust_remote_code=spec.trust_remote_code, **options
            ),
            place=_place(spec),
            hint="give a local folder with config.json, or a hub id while the hub can be reached",
        )
    return config


def load_model(spec: ModelSpec, *, kind: str, n_labels: int | None) -> LoadedModel:
    """Load tokenizer and weights, put the task's head on, freeze all but the head.

    Args:
        spec: Which model; weights come in `spec.dtype`, else in the dtype that its configuration names. A head
            is always fp32 and casts its input.
        kind: A key of `autopeft.trainers.kinds.AUTO_CLASSES`.
        n_labels: Outputs of the new head, 1 for regression and multiple choice; None for language models.

    Raises:
        ModelError: Besides `read_shape`'s reasons: no tokenizer, no weights, weights that do not fit the
            configuration, an unknown kind, or one that the model is not made for.
    """
    if kind not in KINDS:
        raise ModelError(f"unknown task kind {kind!r}", hint=f"use one of {', '.join(KINDS)}")
    shape = read_shape(spec)
    check_kind(kind, shape, place=_place(spec))
    tokenizer = load_tokenizer(spec)
    model, missing = _load_weights(spec, kind=kind, n_labels=n_labels)
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False).eval()
    head_names = () if kind in LANGUAGE else _head_names(model, missing, place=_place(spec))
    for name in head_names:
        _make_trainable(model.get_submodule(name))
    return LoadedModel(spec=spec, kind=kind, model=model, tokenizer=tokenizer, shape=shape, head_names=head_names)


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer; one without a padding token (most decoders) pads with its end-of-text token.

    Raises:
        ModelError: There is none, or an empty one (which transformers makes up for a folder without vocabulary), or
            it has neither token.
    """
    _check_folder(spec)
    with _quiet():
        tokenizer: PreTrainedTokenizerBase = _attempt(
            lambda: AutoTokenizer.from_pretrained(
                _source(spec), revision=spec.revision, trust_remote_code=spec.trust_remote_code
            ),
            place=f"{_place(spec)}: tokenizer",
            hint=_TOKENIZER_FILES,
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + _FILLERS:
        raise ModelError(f"{_place(spec)}: tokenizer: it has no words", hint=_TOKENIZER_FILES)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{_place(spec)}: the tokenizer has no padding token and no end-of-text token",
            hint="set pad_token in its tokenizer_config.json",
        )
    return tokenizer


def head_parameters(loaded: LoadedModel) -> dict[str, nn.Parameter]:
    """The head's parameters by their names in the model, in a stable order."""
    return {
        f"{name}.{inner}": parameter
        for name in loaded.head_names
        for inner, parameter in loaded.model.get_submodule(name).named_parameters()
    }


def head_state(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Copies of the head's tensors, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in head_parameters(loaded).items()}


@torch.no_grad()
def load_head_state(loaded: LoadedModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copy `state` (as from `head_state`) into the head.

    Raises:
        ModelError: Names or sizes differ from the head's.
    """
    own = head_parameters(loaded)
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


def set_training(loaded: LoadedModel, *, training: bool) -> None:
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
    with _quiet():
        model, info = _attempt(  # type: ignore[misc]  # a pair, for output_loading_info
            lambda: auto.from_pretrained(
                _source(spec),
                config=config,
                revision=spec.revision,
                dtype=_dtype(spec, config),
                trust_remote_code=spec.trust_remote_code,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            ),
            place=f"{_place(spec)}: weights",
            hint="the folder needs model.safetensors (or its shards) of the architecture in config.json",
        )
    prefix = f"{model.base_model_prefix}."
    mismatched = {row[0] for row in info["mismatched_keys"]}
    wrong = sorted(key for key in mismatched if key.startswith(prefix) or kind in LANGUAGE)
    if wrong:
        raise ModelError(
            f"{_place(spec)}: weights: {wrong[0]} has another size than config.json says",
            hint="config.json and the weights file belong to different models; take both from one place",
        )
    missing = set(info["missing_keys"])
    if kind in LANGUAGE and missing:
        raise ModelError(
            f"{_place(spec)}: weights: no {min(missing)} in the checkpoint",
            hint=f"{kind} needs a checkpoint saved with its language-model head",
        )
    return model, missing | mismatched


def _head_names(model: PreTrainedModel, missing: set[str], *, place: str) -> tuple[str, ...]:
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
    """Whether a part of the base holds embeddings or layers, which only a checkpoint can give."""
    return any(isinstance(module, (nn.Embedding, nn.ModuleList)) for module in part.modules())


def _make_trainable(head: nn.Module) -> None:
    """fp32 parameters with gradients; the input of the head is cast to fp32 on its way in."""
    head.float().requires_grad_(True)

    def to_float(_: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(arg.float() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args)

    head.register_forward_pre_hook(to_float)


def _place(spec: ModelSpec) -> str:
    return f"model {spec.name!r}"


def _source(spec: ModelSpec) -> str:
    """What the library is asked for: the hub id, or the path with `~` spelled out."""
    path = Path(spec.name).expanduser()
    return str(path) if path.exists() else spec.name


def _code_options(spec: ModelSpec) -> dict[str, bool]:
    return {"trust_remote_code": True} if spec.trust_remote_code else {}


def _dtype(spec: ModelSpec, config: PretrainedConfig) -> torch.dtype:
    if spec.dtype is not None and spec.dtype not in DTYPES:
        raise ModelError(
            f"{_place(spec)}: dtype: got {spec.dtype!r}", hint=f"use one of {', '.join(DTYPES)}, or leave it out"
        )
    if spec.dtype is not None:
        return DTYPES[spec.dtype]
    stated = config.dtype
    return stated if isinstance(stated, torch.dtype) else torch.float32


def _check_folder(spec: ModelSpec) -> None:
    """Refuse what can be seen to be wrong without the library.

    Raises:
        ModelError: A path that does not exist or is a file, a folder without a usable config.json.
    """
    path = Path(spec.name).expanduser()
    looks_local = spec.name.startswith((".", "/", "~")) or spec.name.count("/") > 1 or "\\" in spec.name
    if not path.exists():
        if looks_local:
            raise ModelError(
                f"{_place(spec)}: no such folder", hint="check the path, or give a hub id such as org/name"
            )
        return
    file = path / "config.json"
    if not file.is_file():
        raise ModelError(
            f"{_place(spec)}: {'a file, not a folder' if path.is_file() else 'the folder has no config.json'}",
            hint="give the folder that save_pretrained wrote: config.json, weights and tokenizer files",
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{_place(spec)}: config.json is no JSON: {error}", hint="restore the file") from None
    if not isinstance(data, dict) or not data.get("model_type"):
        raise ModelError(
            f"{_place(spec)}: config.json names no model_type",
            hint='add "model_type", e.g. "bert" or "llama", as save_pretrained writes it',
        )


def _attempt(call: Callable[[], T], *, place: str, hint: str) -> T:
    """`call()`, its library errors turned into one line.

    Raises:
        ModelError: With the first line of the library's message.
    """
    try:
        return call()
    except ModelError:
        raise
    except _LOAD_ERRORS as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{place}: {lines[0].strip()[:300]}", hint=hint) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings about new heads and no progress bars, for the length of a `with` block."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
