"""FRoD against peft's own: the same frames, and the same numbers for the same changes."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.errors import ModelError
from autopeft.spaces.canonical import configuration as canonical
from autopeft.trainers.adapters.frod import FrodSite
from autopeft.trainers.adapters.site_updates import SiteUpdates
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.sites import layers_of, measure
from tests.conformance.test_methods import disturb, run
from tests.models import build_base


@pytest.fixture
def bert() -> PreTrainedModel:
    base = build_base("bert")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return base


def sites(adapters: AdapterSet, target: str) -> dict[int, FrodSite]:
    found: dict[int, FrodSite] = {}
    for _, layer, adapter in adapters.adapters():
        assert isinstance(adapter, SiteUpdates)
        site = adapter.update(target)
        assert isinstance(site, FrodSite)
        found[layer] = site
    return found


def test_it_computes_what_peft_computes(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    targets = ["query", "output.dense"]
    config = peft.FrodConfig(target_modules=[*targets], sparse_rate=0.05, progressbar=False)
    twin = peft.get_peft_model(copy.deepcopy(bert), config).eval()  # type: ignore[arg-type]  # a transformers model
    ours = {"frod": {"enabled": 1, "rate": 0.05, "targets": ["query", "intermediate.dense", "output.dense"]}}
    ours["frod"]["targets"] = ["query", "attention.output.dense", "output.dense"]
    before = run(bert)
    with inject(bert, shape, canonical(ours, shape), seed=0) as adapters:
        assert torch.equal(run(bert), before)
        disturb(adapters, size=0.05)
        for target in ("attention.self.query", "attention.output.dense", "output.dense"):
            for layer, site in sites(adapters, target).items():
                other = twin.get_submodule(f"base_model.model.encoder.layer.{layer}.{target}")
                (shared,) = site._shared
                theirs = other.frod_V["default"].abs()  # a column and its negative are one direction
                torch.testing.assert_close(theirs, shared.basis.abs(), atol=2e-2, rtol=2e-2)
                torch.testing.assert_close(other.frod_lambda_l["default"], site.lengths, atol=1e-3, rtol=1e-3)
                with torch.no_grad():
                    other.frod_V["default"], other.frod_U["default"] = shared.basis, site.left
                    other.frod_s_indices["default"] = shared.places.long()
                    other.frod_lambda_s_values["default"].copy_(site.entries)
                    other.frod_lambda_l["default"].copy_(site.lengths + site.diagonal)
        torch.testing.assert_close(run(bert), run(twin), atol=1e-3, rtol=1e-3)
        assert (run(bert) - before).abs().max() > 1e-2


def test_the_frame_is_the_weight_and_layers_share_what_is_theirs(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    config = canonical({"frod": {"enabled": 1, "ridge": [1e-3, 1e-3, 1e-1], "targets": "query"}}, shape)
    with inject(bert, shape, config, seed=0) as adapters:
        found = sites(adapters, "attention.self.query")
        for layer, site in found.items():
            weight = layers_of(bert, shape)[layer].get_submodule("attention.self.query").get_parameter("weight")
            frame = site.left @ torch.diag(site.lengths) @ site._shared[0].basis.t()
            torch.testing.assert_close(frame, weight, atol=1e-4, rtol=1e-3)
        assert found[0]._shared[0] is found[1]._shared[0]
        assert found[2]._shared[0] is not found[0]._shared[0]
        names = [name for name in adapters.state_dict() if name.endswith("basis")]
        assert len(names) == 2, "the layer that is first has it in the file"
        rows, columns = found[0]._shared[0].places
        assert (rows != columns).all()
        assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == len(rows) == 10


def test_another_base_is_refused(bert: PreTrainedModel, tmp_path: Path) -> None:
    shape = measure(bert, bert.config)
    config = canonical({"frod": {"enabled": 1}}, shape)
    with inject(bert, shape, config, seed=0) as adapters:
        kept = {name: tensor.clone() for name, tensor in adapters.state_dict().items()}
    other = build_base("bert", seed=3)
    strange = inject(other, shape, config, seed=0)
    strange.load_state_dict(kept)
    strange.remove()
    layer = layers_of(other, shape)[0]
    assert isinstance(layer, nn.Module)
    with pytest.raises(ModelError, match="not the one this adapter was trained on"):
        next(adapter for _, where, adapter in strange.adapters() if where == 0).attach(other, layer)
