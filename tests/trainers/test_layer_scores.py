"""Scores of layers against plain autograd over whole gradients, token by token."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from autopeft.errors import ModelError
from autopeft.spaces import layer_prior
from autopeft.spaces.layer_prior import LayerScores
from autopeft.trainers.batches import Batch, batches_of, training_batches
from autopeft.trainers.course import pad_id_of
from autopeft.trainers.job import TaskSpec
from autopeft.trainers.layer_scores import BATCHES, LAYER_SCORES, SELECTED, score_layers, selected_share
from autopeft.trainers.model import reset_head
from autopeft.trainers.sites import Conv1D, layers_of
from autopeft.trainers.task import resolve_task
from autopeft.trainers.trainer import Trainer
from tests.trainers import support

SETTINGS = replace(support.SETTINGS, batch_size=4, seed=3)
Key = tuple[int, str]
Twin = dict[Key, list[dict[str, torch.Tensor]]]


def score(name: str, trainer: Trainer, task: TaskSpec) -> LayerScores:
    return score_layers(name, trainer._named, task, SETTINGS)


def seen(trainer: Trainer, task: TaskSpec) -> Twin:
    """By site and batch: gradient as [d_out, d_in], weight, and input and output of every real token."""
    loaded, split, kind = trainer.loaded, trainer.tokens("train"), resolve_task(task)
    reset_head(loaded, SETTINGS.seed)
    loaded.model.eval().requires_grad_(True)
    layers = layers_of(loaded.model.base_model, loaded.shape)
    modules = {
        (layer, site.name): layers[layer].get_submodule(site.name)
        for layer, sites in enumerate(loaded.shape.layers)
        for site in sites
    }
    found: Twin = {key: [] for key in modules}
    rows = training_batches(split.lengths, SETTINGS.batch_size, seed=SETTINGS.seed, epoch=0)[:BATCHES]
    for batch in batches_of(split, rows, pad_id=pad_id_of(loaded)):
        assert isinstance(batch, Batch)
        passed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def keep(
            module: nn.Module,
            args: tuple[torch.Tensor, ...],
            out: torch.Tensor,
            passed: dict[int, tuple[torch.Tensor, torch.Tensor]] = passed,
        ) -> None:
            passed[id(module)] = (args[0], out)

        handles = [module.register_forward_hook(keep) for module in modules.values()]
        loss = kind.loss(*kind.outputs(loaded.model, batch, torch.device("cpu")))
        weights = [module.weight for module in modules.values()]
        gradients = torch.autograd.grad(loss, weights)  # type: ignore[arg-type]  # parameters
        for (key, module), gradient in zip(modules.items(), gradients, strict=True):
            turn = isinstance(module, Conv1D)
            x, y = passed[id(module)]
            places = [(row, at) for row in range(len(batch.mask_BT)) for at in np.flatnonzero(batch.mask_BT[row])]
            found[key].append(
                {
                    "g": gradient.T if turn else gradient,
                    "w": module.weight.detach().T if turn else module.weight.detach(),  # type: ignore[operator]
                    "x": torch.stack([x[place] for place in places]).detach(),
                    "y": torch.stack([y[place] for place in places]).detach(),
                }
            )
        for handle in handles:
            handle.remove()
    return found


def expected(name: str, twin: Twin) -> Mapping[Key, float]:
    """Each score's equation, written out."""
    if name == "gradient_norm":
        return {key: float(np.sqrt(np.mean([float(b["g"].norm()) ** 2 for b in rows]))) for key, rows in twin.items()}
    if name == "saliency":
        return {key: float(np.mean([float((b["g"] * b["w"]).abs().sum()) for b in rows])) for key, rows in twin.items()}
    if name == "norm_ratio":
        ratio = {
            key: [
                np.mean([float((b["g"] @ x).norm() / y.norm()) for x, y in zip(b["x"], b["y"], strict=True)])
                for b in rows
            ]
            for key, rows in twin.items()
        }
        return {key: float(np.mean(rows)) for key, rows in ratio.items()}
    sums = [(float(value), key) for key, rows in twin.items() for value in sum(b["g"] ** 2 for b in rows).flatten()]  # type: ignore[union-attr]
    chosen = sorted(sums, key=lambda row: -row[0])[: round(SELECTED * len(sums))]
    return {key: sum(owner == key for _, owner in chosen) / len(chosen) for key in twin}


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, TaskSpec, Twin]:
    folder = tmp_path_factory.mktemp("scores")
    task = support.classification(folder) if request.param == "bert" else support.language(folder)
    trainer = support.trainer(folder, task, model=request.param, settings=SETTINGS)
    return trainer, task, seen(trainer, task)


@pytest.mark.parametrize("name", LAYER_SCORES)
def test_a_score_is_its_equation(name: str, trained: tuple[Trainer, TaskSpec, Twin]) -> None:
    trainer, task, twin = trained
    found, sites = score(name, trainer, task), expected(name, twin)
    assert {(layer, site) for layer, row in enumerate(found.sites) for site in row} == set(sites)
    for (layer, site), value in sites.items():
        assert found.sites[layer][site] == pytest.approx(value, rel=1e-3, abs=1e-9), (layer, site)
    for layer, value in enumerate(found.layers):
        parts = np.array([of for (at, _), of in sites.items() if at == layer])
        whole = {"gradient_norm": np.sqrt((parts**2).sum()), "norm_ratio": parts.mean()}.get(name, parts.sum())
        assert value == pytest.approx(float(whole), rel=1e-3)
    assert (found.rows, found.seed) == (BATCHES * SETTINGS.batch_size, SETTINGS.seed)


def test_scores_are_the_same_again_and_differ_by_seed_and_leave_chance_alone(
    trained: tuple[Trainer, TaskSpec, Twin],
) -> None:
    trainer, task, _ = trained
    state = torch.random.get_rng_state()
    first = score("saliency", trainer, task)
    assert score("saliency", trainer, task) == first == LayerScores.from_json(first.to_json())
    assert score_layers("saliency", trainer._named, task, replace(SETTINGS, seed=4)).layers != first.layers
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_gradient_that_is_not_finite_is_named(trained: tuple[Trainer, TaskSpec, Twin]) -> None:
    trainer, task, _ = trained
    broken = replace(LAYER_SCORES["saliency"], of_batch=lambda seen: torch.tensor(float("nan")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYER_SCORES, "saliency", broken)  # type: ignore[arg-type]  # the table is a dict
        with pytest.raises(ModelError, match=r"of layer 2 is not finite .*layers_from"):
            score("saliency", trainer, task)


def test_no_more_weights_are_selected_than_asked_for_where_sums_are_equal() -> None:
    sums = {(0, "a"): torch.ones(10, 20), (1, "a"): torch.ones(10, 20)}
    assert selected_share(sums, 1) == {(0, "a"): 0.5, (1, "a"): 0.5}
    sums[1, "a"][3, :3] = 2.0
    shares = selected_share(sums, 1)
    assert shares[1, "a"] == pytest.approx((3 + 197 / 397) / 4)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_every_score_is_named_where_study_files_are_read() -> None:
    assert LAYER_SCORES.keys() == layer_prior.LAYER_SCORES.keys()


def test_chances_have_the_odds_of_scores_to_their_geometric_mean() -> None:
    def chances(*layers: float) -> list[float]:
        return list(LayerScores(score="saliency", rows=1, seed=0, layers=layers, sites=()).weights.values())

    assert chances(3.0, 3.0, 3.0) == pytest.approx([0.5] * 3)
    assert chances(1.0, 4.0) == pytest.approx([1 / 3, 2 / 3]), "the geometric mean is 2"
    assert chances(0.0, 1.0, 1e9) == [0.1, pytest.approx(0.1), 0.9]
    assert chances(0.0, 0.0) == chances(float("nan"), 1.0) == [0.5, 0.5]
