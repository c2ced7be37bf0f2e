"""Where a base model is, and what can be read of it without its weights."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging

from autopeft.errors import ModelError
from autopeft.trainers.image_reader import ImageReader, open_image_reader
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.lengths import refuse_length

T = TypeVar("T")

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_LOAD_ERRORS: Final = (
    *(OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, ArithmeticError),
    *(SafetensorError, StrictDataclassError),
)


def read_config(spec: ModelSpec) -> PretrainedConfig:
    """The Hugging Face configuration of `spec`, with its attention implementation applied.

    Raises:
        ModelError: As for `read_shape`.
    """
    check_folder(spec)
    options = {} if spec.attention is None else {"attn_implementation": spec.attention}
    with quiet():
        config: PretrainedConfig = attempt(
            lambda: AutoConfig.from_pretrained(
                source_of(spec), revision=spec.revision, trust_remote_code=spec.trust_remote_code, **options
            ),
            place=place_of(spec),
            hint="give a local folder with config.json, or a hub id while the hub can be reached",
        )
    if config.architectures is None:
        config.architectures = []  # where several classes fit (DeiT), transformers looks into it
    return config


def shorten(config: PretrainedConfig, depth: int) -> None:
    """Make `config` that of a model with the first `depth` layers."""
    for name, row in by_layer(config, config.num_hidden_layers):
        setattr(config, name, row[:depth])
    config.num_hidden_layers = depth


def by_layer(config: PretrainedConfig, n_layers: int) -> list[tuple[str, Sequence[object]]]:
    """Entries of a configuration that are lists with an entry for each layer."""
    return [
        (name, value)
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == n_layers
    ]


def check_length(model: ModelSpec, max_length: int, *, virtual: int = 0, place: str = "training.max_length") -> None:
    """Refuse a `max_length` (with as many `virtual` tokens before it) beyond the positions the model has.

    Args:
        model: Of which the configuration is read.
        max_length: Tokens of a row.
        virtual: Tokens that adapters put before it.
        place: Where the length is written.

    Raises:
        SpecError: With what there is room for.
    """
    refuse_length(model, max_length, virtual=virtual, limit=most_tokens(model), place=place)


def most_tokens(model: ModelSpec) -> int | None:
    """Positions that the model has; None where its configuration sets no limit."""
    config = read_config(model).get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    if config.model_type in _OFFSET_POSITIONS:
        limit -= _MPNET_RESERVED if config.model_type == "mpnet" else int(config.pad_token_id or 0) + 1
    return limit


_OFFSET_POSITIONS = (
    *("camembert", "data2vec-text", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
)
"""Families whose positions start after the padding token's id, so that they take that many tokens fewer."""
_MPNET_RESERVED = 2


def load_image_reader(spec: ModelSpec) -> ImageReader:
    """The image processor of a model that reads images.

    Raises:
        ModelError: It has none, or one that does not suit (`ImageReader`).
    """
    config = read_config(spec)
    try:
        with quiet():
            return attempt(
                lambda: open_image_reader(
                    source_of(spec),
                    revision=spec.revision,
                    trust_remote_code=spec.trust_remote_code,
                    n_channels=int(getattr(config, "num_channels", 3)),
                ),
                place="image processor",
                hint="the folder needs preprocessor_config.json beside config.json: save there what"
                " AutoImageProcessor.from_pretrained(HUB_ID) gives, with save_pretrained(FOLDER)",
            )
    except ModelError as error:
        raise error.at(place_of(spec)) from None


def place_of(spec: ModelSpec) -> str:
    return f"model {spec.name!r}"


def source_of(spec: ModelSpec) -> str:
    """What the library is asked for: the hub id, or the path with `~` spelled out."""
    path = Path(spec.name).expanduser()
    return str(path) if path.exists() else spec.name


def code_options(spec: ModelSpec) -> dict[str, bool]:
    return {"trust_remote_code": True} if spec.trust_remote_code else {}


def dtype_of(spec: ModelSpec, config: PretrainedConfig) -> torch.dtype:
    if spec.dtype is not None and spec.dtype not in DTYPES:
        raise ModelError(
            f"{place_of(spec)}: dtype: got {spec.dtype!r}", hint=f"use one of {', '.join(DTYPES)}, or leave it out"
        )
    if spec.dtype is not None:
        return DTYPES[spec.dtype]
    stated = config.dtype
    return stated if isinstance(stated, torch.dtype) else torch.float32


def check_folder(spec: ModelSpec) -> None:
    """Refuse what can be seen to be wrong without the library.

    Raises:
        ModelError: A path that does not exist or is a file, a folder without a usable config.json.
    """
    path = Path(spec.name).expanduser()
    looks_local = spec.name.startswith((".", "/", "~")) or spec.name.count("/") > 1 or "\\" in spec.name
    if not path.exists():
        if looks_local:
            raise ModelError(
                f"{place_of(spec)}: no such folder", hint="check the path, or give a hub id such as org/name"
            )
        return
    file = path / "config.json"
    if not file.is_file():
        raise ModelError(
            f"{place_of(spec)}: {'a file, not a folder' if path.is_file() else 'the folder has no config.json'}",
            hint="give the folder that save_pretrained wrote: config.json, weights and tokenizer files",
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{place_of(spec)}: config.json is no JSON: {error}", hint="restore the file") from None
    if not isinstance(data, dict) or not data.get("model_type"):
        raise ModelError(
            f"{place_of(spec)}: config.json names no model_type",
            hint='add "model_type", e.g. "bert" or "llama", as save_pretrained writes it',
        )


def attempt(call: Callable[[], T], *, place: str, hint: str) -> T:
    """`call()`, its library errors turned into one line.

    Raises:
        ModelError: With the first line of the library's message.
    """
    try:
        return call()
    except ModelError:
        raise
    except _LOAD_ERRORS as error:
        said = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        text = f"it knows no {said}" if isinstance(said, KeyError) else str(said)
        lines = text.strip().splitlines() or [type(said).__name__]
        raise ModelError(f"{place}: {lines[0].strip()[:300]}", hint=hint) from error


@contextmanager
def quiet() -> Iterator[None]:
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
