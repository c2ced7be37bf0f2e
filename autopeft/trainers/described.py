"""A model with its task's head, described by its configuration alone: every tensor has a size and no values."""

from dataclasses import dataclass

from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.fake import adopt, faking, new_mode
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.kinds import LANGUAGE, SEQUENCES, check_kind
from autopeft.trainers.model import build_empty, head_modules, make_trainable, read_shape, settle_decoder_start
from autopeft.trainers.sites import without_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedModel:
    """As `autopeft.trainers.model.LoadedModel`, without weights and tokenizer."""

    model: PreTrainedModel
    mode: FakeTensorMode
    """Where its tensors live; whatever acts on the model must be made in it."""
    shape: ModelShape
    kind: str
    head_names: tuple[str, ...]


def describe_model(
    spec: ModelSpec, *, kind: str, n_labels: int | None, depth: int | None = None, shape: ModelShape | None = None
) -> DescribedModel:
    """The model that training `kind` would load, from its configuration.

    A checkpoint that lacks a part of the base (a pooler) has it drawn anew and trained; that is not known here, so the
    base counts as complete.

    Args:
        spec: Dtype and attention as they are trained with.
        kind: A key of `autopeft.trainers.kinds.AUTO_CLASSES`.
        n_labels: Outputs of the new head; None for language models.
        depth: With its first so many layers only.
        shape: What `read_shape` says of the same model and depth, where that is known.

    Raises:
        ModelError: As `autopeft.trainers.model.read_shape`.
    """
    place = f"model {spec.name!r}"
    shape = shape or read_shape(spec, depth=depth)
    check_kind(kind, shape, place=place, custom_code=spec.trust_remote_code)
    model = build_empty(spec, kind, n_labels=n_labels, depth=depth)
    mode = new_mode()
    model.requires_grad_(False).eval()
    without_cache(model)
    if kind == SEQUENCES:
        settle_decoder_start(model, place=place)
    head_names = () if kind in LANGUAGE else head_modules(model, set(), place=place)
    adopt(model, mode)
    with faking(mode):
        for name in head_names:
            make_trainable(model.get_submodule(name))
    return DescribedModel(model=model, mode=mode, shape=shape, kind=kind, head_names=head_names)
