"""Recording the calls of layers, of which the alike are computed once, against computing every one."""

from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from autopeft.trainers.calls import Call, record_calls
from autopeft.trainers.described import describe_model
from autopeft.trainers.example import example_batch
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.kinds_of_layer import layer_kinds
from autopeft.trainers.repeated import Repeated
from autopeft.trainers.step import Step
from autopeft.trainers.task import TASKS
from tests.models import MODELS
from tests.trainers.test_kinds import CONFIGS

KINDS = {
    **dict.fromkeys(MODELS, "text-classification"),
    "t5": "seq2seq",
    "bart": "seq2seq",
    "vit": "image-classification",
}


def step_of(family: str, folder: Path) -> Step:
    (CONFIGS[family] if family in CONFIGS else MODELS[family].config()).save_pretrained(folder)
    kind = KINDS.get(family, "text-classification")
    n_labels = None if kind == "seq2seq" else 2
    described = describe_model(ModelSpec(name=str(folder)), kind=kind, n_labels=n_labels)
    task = TASKS[kind][0]
    batch = example_batch(task, rows=2, sequences=1, length=8, image=described.shape.image)
    return Step(described=described, task=task, batch=batch, device="cpu")


def facts(call: Call) -> tuple[object, ...]:
    """All of a call but which tensors it has."""
    leaves = [leaf for part in (call.args, call.kwargs, call.output) for leaf in tree_leaves(part)]
    tensors = [(leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return call.layer, tensors, call.flowing, call.parents, call.outputs


@pytest.mark.parametrize("family", sorted({*MODELS, *CONFIGS}))
def test_repeated_calls_are_as_computed_ones(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of(family, tmp_path)
    short = record_calls(step)
    monkeypatch.setattr(Repeated, "_called", lambda self, mark, compute, args, kwargs: compute(*args, **kwargs))
    whole = record_calls(step)
    assert [facts(call) for call in short] == [facts(call) for call in whole]
    alike = [[row.index(mark) for mark in row] for row in (layer_kinds(step.layers, calls) for calls in (short, whole))]
    assert alike[0] == alike[1]


def test_equal_layers_are_computed_once(tmp_path: Path) -> None:
    step = step_of("llama", tmp_path)
    computed: list[int] = []
    for index, layer in enumerate(step.layers):
        layer.self_attn.register_forward_hook(lambda *_, index=index: computed.append(index))  # type: ignore[union-attr]
    assert len(record_calls(step)) == len(step.layers) > 1
    assert computed == [0]
    assert not any("forward" in vars(layer) for layer in step.layers)
