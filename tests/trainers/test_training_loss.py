"""A language model's loss without its logits is that with them, and is taken where the model leaves logits alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from autopeft.kernels.device import assuming_cuda
from autopeft.kernels.dispatch import Operation
from autopeft.trainers.batches import AnyBatch
from autopeft.trainers.example import example_batch
from autopeft.trainers.task import TASKS
from autopeft.trainers.training_loss import OfHidden, OfOutputs, training_loss
from tests.models import MODELS
from tests.trainers.test_kinds import CONFIGS

CPU = torch.device("cpu")
CAUSAL = [name for name, row in MODELS.items() if row.causal]
CHANGED = frozenset({"bart", "gemma2"})
"""One adds to its logits, one caps them."""


@contextmanager
def on_cuda() -> Iterator[None]:
    """Inside, what kernels would compute on a CUDA device their twins do."""
    with assuming_cuda(launches=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Operation, "kernel", lambda operation: operation.twin)
        yield


def written(name: str) -> tuple[nn.Module, str]:
    """A frozen tiny language model, and its task."""
    torch.manual_seed(0)
    if name in CONFIGS:
        model, kind = transformers.AutoModelForSeq2SeqLM.from_config(CONFIGS[name]), "seq2seq"
    else:
        model, kind = transformers.AutoModelForCausalLM.from_config(MODELS[name].config()), "causal-lm"
    return model.eval().requires_grad_(False), kind


def loss_of(name: str) -> tuple[type, list[torch.Tensor], list[torch.Tensor]]:
    """How the losses of two slots are computed, the losses, and the gradients of the embeddings."""
    model, kind = written(name)
    rows: AnyBatch = example_batch(TASKS[kind][0], rows=6, sequences=1, length=7)
    way = training_loss(TASKS[kind][0], model)  # type: ignore[arg-type]  # a model of transformers
    outputs, targets = (tensor for tensor in way.outputs(rows, CPU))
    outputs.requires_grad_()
    n = len(targets) // 3
    losses = list(way.losses(outputs, targets, [n, len(targets) - n]))
    embedding = model.get_output_embeddings()  # type: ignore[operator]  # see above
    gradient = torch.autograd.grad(torch.stack(losses) @ torch.tensor([1.0, 3.0]), outputs)[0]
    if isinstance(way, OfOutputs):
        gradient = gradient @ embedding.weight
    assert "forward" not in embedding.__dict__, "the head is as it was"
    return type(way), losses, [gradient]


@pytest.mark.parametrize("name", [*CAUSAL, "t5", "bart"])
def test_losses_and_gradients_are_those_of_whole_logits(name: str) -> None:
    plain, losses, gradients = loss_of(name)
    with on_cuda():
        way, found, own = loss_of(name)
    assert (plain, way) == (OfOutputs, OfOutputs if name in CHANGED else OfHidden)
    torch.testing.assert_close(found, losses)
    if name not in CHANGED:
        torch.testing.assert_close(own, gradients, rtol=1e-4, atol=1e-6)


def test_a_head_that_something_acts_on_or_that_is_trained_keeps_its_logits() -> None:
    model, kind = written("llama")
    with on_cuda():
        head = model.get_output_embeddings()  # type: ignore[operator]  # see above
        handle = head.register_forward_hook(lambda *_: None)
        assert isinstance(training_loss(TASKS[kind][0], model), OfOutputs)  # type: ignore[arg-type]
        handle.remove()
        assert isinstance(training_loss(TASKS[kind][0], model), OfHidden)  # type: ignore[arg-type]
        head.requires_grad_(True)
        assert isinstance(training_loss(TASKS[kind][0], model), OfOutputs)  # type: ignore[arg-type]
        assert isinstance(training_loss(TASKS["text-classification"][0], model), OfOutputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [lambda out: out[1], lambda out: out["past"], lambda out: 2 * out.past_key_values])
def test_a_model_that_reads_more_than_hidden_states_keeps_its_logits(more: Callable[[Any], object]) -> None:
    model, kind = written("llama")
    run = model.forward

    def reads_more(**given: torch.Tensor) -> object:
        more(model.model(**given))  # type: ignore[operator]  # a module
        return run(**given)

    model.forward = reads_more
    with on_cuda():
        assert isinstance(training_loss(TASKS[kind][0], model), OfOutputs)  # type: ignore[arg-type]


def test_a_fault_while_a_model_is_asked_is_not_taken_for_an_answer() -> None:
    model, kind = written("llama")

    def full(**_: torch.Tensor) -> object:
        raise torch.OutOfMemoryError

    model.forward = full
    with on_cuda(), pytest.raises(torch.OutOfMemoryError):
        training_loss(TASKS[kind][0], model)  # type: ignore[arg-type]
