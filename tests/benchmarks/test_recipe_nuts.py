"""The recipe with processes sampled by NUTS: with the extra `bench` a small search, without it what is said."""

import argparse
import importlib.util
import sys

import engines
import pytest
import recipe
import search_quality
import torch

from autopeft.errors import MissingExtraError


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is not installed."""
    find_spec = importlib.util.find_spec
    hidden = ("jax", "numpyro")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name))


@pytest.mark.usefixtures("bare")
def test_named_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["search_quality.py", "--engines", "random", engines.NUTS])
    with pytest.raises(SystemExit) as stopped:
        search_quality.main()
    told = capsys.readouterr()
    assert stopped.value.code == 2
    assert told.out == ""
    assert told.err == (
        "error: recipe+nuts needs the extra bench (jax and numpyro) "
        "(pip install --constraint constraints.txt --editable '.[bench]')\n"
    )


@pytest.mark.usefixtures("bare")
def test_not_named_without_the_extra_it_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    found = search_quality.engines_of(argparse.Namespace(engines=None, draw=False))
    assert list(found) == [engine for engine in engines.ENGINES if engine != engines.NUTS]
    assert capsys.readouterr().err.startswith("left out: recipe+nuts needs the extra bench")
    assert not search_quality.engines_of(argparse.Namespace(engines=[engines.NUTS], draw=True)), "drawing needs nothing"


@pytest.mark.usefixtures("bare")
def test_a_search_without_the_extra_is_refused_and_the_other_recipe_is_not() -> None:
    with pytest.raises(MissingExtraError, match="needs the extra bench"):
        engines.Synthetic().search(engines.NUTS, seed=0, n_trials=4)
    engines.check_installed(engines.RECIPE)


@pytest.mark.slow
def test_a_search_with_the_extra_goes_on_by_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    pytest.importorskip("numpyro")
    import recipe_nuts

    fits: list[int] = []

    def watched(x: torch.Tensor, y: torch.Tensor) -> object:
        fits.append(len(x))
        model = sampled(x, y)
        assert [one.num_mcmc_samples for one in model.models] == [2, 2]
        return model

    sampled = recipe_nuts.sampled
    monkeypatch.setattr(recipe_nuts, "sampled", watched)
    monkeypatch.setattr(recipe_nuts, "CHAIN", recipe_nuts.Chain(warmup=4, samples=4, thinning=2, depth=2))
    monkeypatch.setattr(recipe, "DRAWS", 4)
    found = engines.Synthetic().search(engines.NUTS, seed=0, n_trials=8)
    assert fits == [4]
    assert len(found.curves.by_trial) == 8


@pytest.mark.slow
def test_the_draws_are_those_of_botorch(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    pytest.importorskip("numpyro")
    import recipe_nuts
    from botorch.fit import fit_fully_bayesian_model_nuts
    from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP

    chain = recipe_nuts.Chain(warmup=3, samples=4, thinning=2, depth=3)
    monkeypatch.setattr(recipe_nuts, "CHAIN", chain)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, dtype=torch.float64, generator=generator)
    total = x.sum(dim=1, keepdim=True)
    y = (total - total.mean()) / total.std()
    with jax.enable_x64(True):
        theirs = SaasFullyBayesianSingleTaskGP(x, y)
        steps = {"warmup_steps": chain.warmup, "num_samples": chain.samples, "max_tree_depth": chain.depth}
        fit_fully_bayesian_model_nuts(theirs, thinning=chain.thinning, disable_progbar=True, seed=5, **steps)
    ours = recipe_nuts.process(x, y, 5)
    assert not torch.equal(ours.median_lengthscale, recipe_nuts.process(x, y, 6).median_lengthscale)
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
